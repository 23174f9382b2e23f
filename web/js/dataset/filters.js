// Which pictures are shown: by words in names and captions, and by marks, each with how many have it.

import { element } from "../page/dom.js"
import { word } from "../page/words.js"
import { marksOf } from "./book.js"
import { button, rename } from "./controls.js"
import { markWord } from "./words.js"

const FIRST = [
  "not saved", "unreadable", "unreadable caption", "no caption", "trigger alone", "copy", "near copy", "small", "blurred",
]

export class Filters {
  constructor(changed) {
    this.changed = changed
    this.on = new Set()
    this.search = element("input", {
      type: "search", className: "loom-set-search", placeholder: word("Search captions and names"), autocomplete: "off",
      spellcheck: false, "aria-label": word("Search captions and names"),
    })
    this.chips = element("div", { className: "loom-set-chips", role: "group", "aria-label": word("Show only pictures with") })
    this.element = element("div", { className: "loom-set-filters" }, this.search, this.chips)
    this.search.addEventListener("input", changed)
  }

  /** The pictures to show; with several marks, those that have any of them. */
  chosen(pictures) {
    const searched = this.search.value.toLowerCase().split(/\s+/).filter(Boolean)
    const counts = new Map()
    const found = pictures.filter((picture) => {
      const text = `${picture.name}\n${picture.caption}`.toLowerCase()
      if (!searched.every((each) => text.includes(each))) return false
      const marks = new Set(marksOf(picture).map(([mark]) => mark))
      for (const mark of marks) counts.set(mark, (counts.get(mark) ?? 0) + 1)
      return !this.on.size || [...marks].some((mark) => this.on.has(mark))
    })
    this.draw(counts)
    return found
  }

  /** A chip that is on stays, also when no picture has its mark any more. */
  draw(counts) {
    const rank = (mark) => (FIRST.includes(mark) ? FIRST.indexOf(mark) : FIRST.length)
    const marks = [...new Set([...counts.keys(), ...this.on])].sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1))
    const same = [...this.chips.children].map((chip) => chip.dataset.mark).join("\n") === marks.join("\n")
    if (!same) this.chips.replaceChildren(...marks.map((mark) => this.chip(mark)))
    for (const chip of this.chips.children) {
      const { mark } = chip.dataset
      rename(chip, `${markWord(mark)} ${counts.get(mark) ?? 0}`)
      chip.setAttribute("aria-pressed", String(this.on.has(mark)))
    }
  }

  chip(mark) {
    const made = button(markWord(mark), () => {
      if (!this.on.delete(mark)) this.on.add(mark)
      this.changed()
    })
    made.className = "loom-set-chip"
    made.dataset.mark = mark
    return made
  }
}
