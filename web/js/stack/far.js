// What is seen of the rows from afar, where small letters cannot be read: of each a line of large ones. The rows come
// back when it is pressed or comes into focus, and go when the focus goes elsewhere on the page.

import { find } from "../library/library.js"
import { element, split } from "../page/dom.js"
import { isRow, number } from "../page/rows.js"
import { word } from "../page/words.js"

const LETTERS = 21 // of a name, at the node's least width
const END = 8

export class Far {
  constructor(around) {
    this.around = around
    this.element = element("button", { type: "button", className: "loom-rows-far" })
  }

  hear(signal) {
    this.element.addEventListener("click", () => this.element.focus(), { signal }) // not every browser does
    this.around.addEventListener("focusin", () => this.around.classList.add("loom-near"), { signal })
    this.around.addEventListener("focusout", ({ relatedTarget }) => this.left(relatedTarget), { signal })
  }

  /** What was opened from the rows gives them the focus back. */
  left(target) {
    const elsewhere = target && !this.around.contains(target) && !target.closest("dialog, [popover]")
    if (elsewhere) this.around.classList.remove("loom-near")
  }

  show(items, empty) {
    const lines = items.map(lineOf)
    const text = JSON.stringify(lines)
    if (text === this.text) return
    this.text = text
    const shown = lines.length ? lines : [{ text: empty }]
    this.element.replaceChildren(...shown.map(({ text, kind = "" }) => element("span", { className: kind }, text)))
  }
}

function lineOf(item) {
  if (!isRow(item)) return item.comment === undefined ? { text: `\u26a0 ${item.raw}`, kind: "loom-far-wrong" } : { text: item.comment }
  const file = find(item.name)
  const name = cut(split(item.name)[1])
  if (!file || file.fault) return { text: `\u26a0 ${name}`, kind: "loom-far-wrong" }
  return item.on ? { text: `${number(item.strength)} ${name}` } : { text: `${word("off")} ${name}`, kind: "loom-far-off" }
}

/** A long name loses its middle: versions and epochs stand at its end. */
function cut(name) {
  return name.length > LETTERS ? `${name.slice(0, LETTERS - END - 1)}\u2026${name.slice(-END)}` : name
}
