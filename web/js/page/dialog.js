// A dialog over the page: nothing of what is done in it reaches the graph behind.

import { element } from "./dom.js"
import { word } from "./words.js"

const OWN = ["keydown", "keyup", "paste", "copy", "cut", "wheel"] // not the canvas's

/**
 * A native dialog that is not open yet. Escape closes it, and a click beside it if that is `outside` of it; `closed` is
 * called when it is gone.
 */
export function dialogOf(className, label, children, { outside = true, closed = () => {} } = {}) {
  const made = element("dialog", { className: `loom ${className}`, tabIndex: -1, "aria-label": label }, ...children)
  for (const kind of OWN) made.addEventListener(kind, (event) => event.stopPropagation())
  if (outside) made.addEventListener("click", (event) => event.target === made && made.close())
  made.addEventListener("close", () => {
    made.remove()
    closed()
  })
  return made
}

export function openDialog(made) {
  document.body.append(made)
  made.showModal()
  return made
}

/** Opens one below a title and a button that closes it. */
export function openTitled(className, title, children, closed) {
  const close = element("button", { type: "button", className: "loom-dialog-close", "aria-label": word("Close") }, "\u00d7")
  const head = element("div", { className: "loom-dialog-head" }, element("h2", {}, title), close)
  const made = dialogOf(`loom-dialog ${className}`, title, [head, ...children], { closed })
  close.addEventListener("click", () => made.close())
  return openDialog(made)
}
