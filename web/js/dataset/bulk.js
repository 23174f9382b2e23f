// The bar over a selection: a tag or words for all of its captions in one step, and taking pictures out.

import { element } from "../page/dom.js"
import { word } from "../page/words.js"
import { button, rename, select } from "./controls.js"
import { ACTIONS } from "./tags.js"
import { captions } from "./words.js"

export class Bulk {
  /** `page` is told with `change(edits, words)`, `takeOut()`, `describe()` and `selectNone()`. */
  constructor(page) {
    this.page = page
    this.pictures = []
    this.counted = element("span", { className: "loom-set-counted" })
    this.action = select(word("What to do with the captions"), Object.entries(ACTIONS).map(([value, { label }]) => [value, word(label)]))
    this.words = field(word("tag or words"), word("Tag or words"))
    this.fresh = field(word("with"), word("Replace with"))
    this.apply = button("", () => this.change())
    this.apply.className = "loom-set-main"
    this.describe = button(word("Caption\u2026"), () => page.describe())
    this.out = button(word("Take out"), () => page.takeOut())
    this.element = element("div", { className: "loom-set-bulk", role: "group", "aria-label": word("Selection") },
      this.counted, this.action, this.words, this.fresh, this.apply, element("span", { className: "loom-set-grow" }),
      this.describe, this.out, button(word("Select none"), () => page.selectNone()))
    for (const field of [this.action, this.words, this.fresh]) {
      field.addEventListener("input", () => this.foresee())
      field.addEventListener("keydown", (event) => event.key === "Enter" && this.change())
    }
  }

  show(pictures, hidden, locked) {
    this.pictures = pictures
    this.element.hidden = !pictures.length
    const selected = word("{n} selected", { n: pictures.length })
    this.counted.textContent = hidden ? selected + word(", {n} of them not shown", { n: hidden }) : selected
    this.out.disabled = this.describe.disabled = this.words.disabled = Boolean(locked)
    this.foresee()
  }

  edits() {
    const words = this.words.value.trim()
    if (!words) return []
    const { change } = ACTIONS[this.action.value]
    const open = this.pictures.filter(({ fault }) => !fault)
    const changed = open.map(({ name, caption }) => ({ name, text: change(caption, words, this.fresh.value.trim()) }))
    return changed.filter(({ text }, at) => text !== open[at].caption)
  }

  /** The button tells beforehand how many captions become others. */
  foresee() {
    this.fresh.hidden = this.action.value !== "replace"
    const { length } = this.edits()
    rename(this.apply, length ? word("Change {captions}", { captions: captions(length) }) : word("Changes nothing"))
    this.apply.disabled = !length
  }

  change() {
    const edits = this.edits()
    if (!edits.length) return
    const words = `${word(ACTIONS[this.action.value].label).toLowerCase()}: ${this.words.value.trim()}`
    this.page.change(edits, words)
  }
}

function field(placeholder, label) {
  return element("input", { type: "text", placeholder, "aria-label": label, spellcheck: false, autocomplete: "off" })
}
