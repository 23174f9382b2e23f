// Controls of the page. They are inputs, all of them: ComfyUI undoes a step of the graph at Ctrl+Z wherever the keyboard is
// but in an input, also behind a dialog.

import { element } from "../page/dom.js"

export function button(label, action, title = label) {
  const made = element("input", { type: "button", value: label, title, "aria-label": title })
  made.addEventListener("click", action)
  return made
}

/** A button whose words change. */
export function rename(made, label, title = label) {
  made.value = label
  made.title = title
  made.setAttribute("aria-label", label)
}

export function select(label, options) {
  const made = options.map(([value, words]) => element("option", { value }, words))
  return element("select", { "aria-label": label }, ...made)
}
