// The trigger words of a row: a click on one copies it; its mark puts it into the output `triggers`, or takes it out.

import { copy } from "../page/clipboard.js"
import { button } from "../page/controls.js"
import { element } from "../page/dom.js"

export class Words {
  constructor(item, done) {
    this.item = item
    this.done = done
    this.said = element("span", { className: "loom-row-said", role: "status" })
    this.chips = element("div", { className: "loom-word-chips" })
    this.own = element("input", {
      type: "text", className: "loom-own-word", placeholder: "+ word", autocomplete: "off", spellcheck: false,
      "aria-label": "Add a trigger word", title: "A word of your own for the output triggers",
    })
    this.own.addEventListener("change", () => this.add(this.own.value))
    this.element = element("div", { className: "loom-row-part", role: "group", "aria-label": "Trigger words" },
      element("div", { className: "loom-row-part-head" }, element("span", {}, "Trigger words"), this.said), this.chips)
  }

  show(file) {
    this.file = file
    const known = [...new Set([...(file?.words ?? []), ...(this.item.words ?? [])])]
    const state = JSON.stringify([known, this.given()])
    if (state === this.state) return
    this.state = state
    const at = [...this.chips.children].indexOf(document.activeElement?.closest(".loom-word-chip"))
    const kind = document.activeElement?.classList[0]
    this.chips.replaceChildren(...known.map((word) => this.chip(word)), this.own)
    if (at >= 0) this.chips.children[at]?.querySelector(`.${kind}`)?.focus()
  }

  /** What the output has of this row: what the row says, else what the file's own header does. */
  given() {
    return this.item.words ?? this.usual()
  }

  usual() {
    return this.file?.source?.words ? [] : this.file?.words ?? []
  }

  chip(word) {
    const on = this.given().includes(word)
    const inOutput = `${word} in the output triggers`
    const mark = button("loom-word-mark", on ? "\u2713" : "+", inOutput, () => this.toggle(word))
    mark.setAttribute("role", "switch")
    mark.setAttribute("aria-checked", String(on))
    const label = `Copy ${word}; with Shift: ${on ? "take it out of" : "put it into"} the output triggers`
    const act = (event) => (event.shiftKey ? this.toggle(word) : this.copy(word))
    const text = button("loom-word-text", word, label, act)
    return element("span", { className: on ? "loom-word-chip loom-given" : "loom-word-chip" }, mark, text)
  }

  toggle(word) {
    const given = this.given()
    this.take(given.includes(word) ? given.filter((each) => each !== word) : [...given, word])
  }

  add(text) {
    this.own.value = ""
    const added = text.split(",").map((word) => word.trim()).filter((word) => word && !this.given().includes(word))
    if (added.length) this.take([...this.given(), ...added])
    this.own.focus()
  }

  /** What is as the file says it is not written into the row. */
  take(words) {
    const usual = this.usual()
    const same = words.length === usual.length && usual.every((word) => words.includes(word))
    this.item.words = same ? null : words
    this.said.textContent = ""
    this.done()
  }

  async copy(word) {
    const copied = await copy(word, this.element)
    this.said.textContent = copied ? `copied: ${word}` : "not copied: the browser does not allow it"
  }
}
