// The bar over a selection: a tag or words for all of its captions in one step, and taking pictures out.

import { element } from "../page/dom.js"
import { count } from "./book.js"
import { button, rename, select } from "./controls.js"
import { ACTIONS } from "./tags.js"

export class Bulk {
  /** `page` is told with `change(edits, words)`, `takeOut()`, `describe()` and `selectNone()`. */
  constructor(page) {
    this.page = page
    this.pictures = []
    this.counted = element("span", { className: "loom-set-counted" })
    this.action = select("What to do with the captions", Object.entries(ACTIONS).map(([value, { label }]) => [value, label]))
    this.words = field("tag or words", "Tag or words")
    this.fresh = field("with", "Replace with")
    this.apply = button("", () => this.change())
    this.apply.className = "loom-set-main"
    this.describe = button("Caption\u2026", () => page.describe())
    this.out = button("Take out", () => page.takeOut())
    this.element = element("div", { className: "loom-set-bulk", role: "group", "aria-label": "Selection" },
      this.counted, this.action, this.words, this.fresh, this.apply, element("span", { className: "loom-set-grow" }),
      this.describe, this.out, button("Select none", () => page.selectNone()))
    for (const field of [this.action, this.words, this.fresh]) {
      field.addEventListener("input", () => this.foresee())
      field.addEventListener("keydown", (event) => event.key === "Enter" && this.change())
    }
  }

  show(pictures, hidden, locked) {
    this.pictures = pictures
    this.element.hidden = !pictures.length
    this.counted.textContent = `${pictures.length} selected${hidden ? `, ${hidden} of them not shown` : ""}`
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
    rename(this.apply, length ? `Change ${count(length, "caption")}` : "Changes nothing")
    this.apply.disabled = !length
  }

  change() {
    const edits = this.edits()
    if (!edits.length) return
    const words = `${ACTIONS[this.action.value].label.toLowerCase()}: ${this.words.value.trim()}`
    this.page.change(edits, words)
  }
}

function field(placeholder, label) {
  return element("input", { type: "text", placeholder, "aria-label": label, spellcheck: false, autocomplete: "off" })
}
