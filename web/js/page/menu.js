// A menu of things to do, by mouse or keyboard.

import { element } from "./dom.js"
import { popup } from "./popup.js"

/** Shows `items`, each {label, action, keys, off} or null for a line between them, at an element or {x, y}. */
export function showMenu(label, at, items) {
  const made = popup({ className: "loom-menu", role: "menu", "aria-label": label }, at,
    ...items.map((item) => (item ? entry(item, () => made.hidePopover()) : line())))
  made.addEventListener("keydown", (event) => key(event, made))
  step(made, null, 1)
}

function entry({ label, action, keys = "", off = false }, close) {
  const about = { type: "button", className: "loom-entry", role: "menuitem", tabIndex: -1, disabled: off }
  const made = element("button", about,
    element("span", {}, label), element("span", { className: "loom-entry-keys" }, keys))
  made.addEventListener("pointermove", () => made.focus())
  made.addEventListener("click", () => {
    close()
    action()
  })
  return made
}

function line() {
  return element("div", { className: "loom-line-between", role: "separator" })
}

function key(event, made) {
  const way = { ArrowDown: 1, ArrowUp: -1 }[event.key]
  const end = { Home: 1, End: -1 }[event.key]
  if (way) step(made, document.activeElement, way)
  else if (end) step(made, null, end)
  else if (event.key === "Tab") made.hidePopover()
  else if (event.key.length === 1 && event.key !== " ") jump(made, event.key.toLowerCase())
  else return
  event.preventDefault()
}

/** From an entry to the next that can be chosen, around the ends; from none to the first or the last. */
function step(made, from, way) {
  const entries = [...made.querySelectorAll(".loom-entry:enabled")]
  const at = from ? entries.indexOf(from) + way : way > 0 ? 0 : -1
  entries.at(at % entries.length)?.focus()
}

function jump(made, letter) {
  const entries = [...made.querySelectorAll(".loom-entry:enabled")]
  const at = entries.indexOf(document.activeElement) + 1
  const next = [...entries.slice(at), ...entries.slice(0, at)]
  next.find((each) => each.textContent.toLowerCase().startsWith(letter))?.focus()
}
