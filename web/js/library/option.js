// One LoRA in the picker: a row of the list or a card of the grid.

import { element, split } from "../page/dom.js"
import { icon } from "./icons.js"
import { isFavourite } from "./kept.js"
import { pictureUrl } from "./library.js"
import { spoken, word } from "../page/words.js"

const TOUCHED = "(hover: none), (max-width: 600px)" // where nothing is shown by pointing at it, as in css/library.css

/**
 * `facts` are `current`, the name chosen so far, and `added`, how often each name was added; `actions` are functions of
 * the LoRA: `add`, which may be missing, and `about`.
 */
export function optionOf(lora, grid, { current, added }, actions) {
  const [folder, bare] = split(lora.name)
  const marks = signs(lora, lora.name === current, added.get(lora.name))
  const made = element("div", { className: "loom-option", role: "option", title: lora.name },
    shot(lora),
    element("div", { className: "loom-lines" },
      element("div", { className: "loom-line" },
        element("span", { className: "loom-bare" }, ...halves(bare)), ...(grid || !folder ? [] : [folderOf(folder)])),
      element("div", { className: "loom-line loom-dim" },
        element("span", { className: "loom-grow" }, grid ? lora.base || lora.family || "" : told(lora)),
        ...(grid ? [] : [element("span", { className: "loom-family" }, lora.base || lora.family || "")]))),
    ...(marks.length ? [element("div", { className: "loom-signs" }, ...marks)] : []),
    element("div", { className: "loom-actions" }, ...buttons(lora, bare, actions)))
  made.classList.toggle("loom-current", lora.name === current)
  made.classList.toggle("loom-broken", Boolean(lora.fault))
  return made
}

/** Asks for the picture of an option that was drawn without. */
export function showPicture(option) {
  const picture = option.querySelector("img[data-address]")
  if (!picture || picture.hasAttribute("src")) return
  picture.addEventListener("error", () => picture.replaceWith(icon("picture")), { once: true })
  picture.src = picture.dataset.address
}

/** What is wrong with a file, else its words, else what it is called. */
function told(lora) {
  return spoken(lora.fault) || lora.words?.join(", ") || lora.title || ""
}

/** A long name is cut before its end, where versions and epochs stand. */
function halves(bare) {
  if (bare.length <= 16) return [bare]
  return [bare.slice(0, -8), bare.slice(-8)].map((half) => element("span", {}, half))
}

function folderOf(folder) {
  return element("span", { className: "loom-folder" }, folder.replace(/\/$/, ""))
}

function shot(lora) {
  const inside = lora.picture
    ? element("img", { className: "loom-picture", alt: "", decoding: "async", "data-address": pictureUrl(lora) })
    : icon("picture")
  return element("div", { className: "loom-shot" }, inside)
}

function signs(lora, isCurrent, times) {
  return [
    lora.fault && sign("loom-fault", "broken", lora.ruled_out ? word("on a takedown list") : word("cannot be used")),
    isCurrent && sign("", "done", word("chosen now")),
    times && sign("loom-added", "done", times > 1 ? word("added {times} times", { times }) : word("added")),
    isFavourite(lora) && element("span", { className: "loom-sign loom-star", title: word("favourite") }, icon("star", true),
      element("span", { className: "loom-unseen" }, word("favourite"))),
  ].filter(Boolean)
}

function sign(className, name, words) {
  return element("span", { className: `loom-sign ${className}` }, icon(name), words)
}

/** For the mouse and for fingers; the keyboard has keys for the same. */
function buttons(lora, bare, { add, about }) {
  const wanted = []
  if (matchMedia(TOUCHED).matches) wanted.push(["loom-about", "about", word("About {name}", { name: bare }), about])
  if (add) wanted.push(["loom-plus", "plus", word("Add {name} and stay", { name: bare }), add])
  return wanted.map(([className, name, label, action]) => {
    const button = element("button", { type: "button", className, title: label, "aria-label": label, tabIndex: -1 }, icon(name))
    button.addEventListener("click", (event) => {
      event.stopPropagation()
      action(lora)
    })
    return button
  })
}
