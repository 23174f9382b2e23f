// The trigger words of a row: a click on one copies it; its mark puts it into the output `triggers`, or takes it out.

import { copy } from "../page/clipboard.js"
import { button } from "../page/controls.js"
import { element } from "../page/dom.js"
import { word } from "../page/words.js"

export class Words {
  constructor(item, done) {
    this.item = item
    this.done = done
    this.said = element("span", { className: "loom-row-said", role: "status" })
    this.chips = element("div", { className: "loom-word-chips" })
    this.own = element("input", {
      type: "text", className: "loom-own-word", placeholder: word("+ word"), autocomplete: "off", spellcheck: false,
      "aria-label": word("Add a trigger word"), title: word("A word of your own for the output triggers"),
    })
    this.own.addEventListener("change", () => this.add(this.own.value))
    this.element = element("div", { className: "loom-row-part", role: "group", "aria-label": word("Trigger words") },
      element("div", { className: "loom-row-part-head" }, element("span", {}, word("Trigger words")), this.said), this.chips)
  }

  show(file) {
    this.file = file
    const known = [...new Set([...(file?.words ?? []), ...(this.item.words ?? [])])]
    const state = JSON.stringify([known, this.given()])
    if (state === this.state) return
    this.state = state
    const at = [...this.chips.children].indexOf(document.activeElement?.closest(".loom-word-chip"))
    const kind = document.activeElement?.classList[0]
    this.chips.replaceChildren(...known.map((trigger) => this.chip(trigger)), this.own)
    if (at >= 0) this.chips.children[at]?.querySelector(`.${kind}`)?.focus()
  }

  /** What the output has of this row: what the row says, else what the file's own header does. */
  given() {
    return this.item.words ?? this.usual()
  }

  usual() {
    return this.file?.source?.words ? [] : this.file?.words ?? []
  }

  chip(trigger) {
    const on = this.given().includes(trigger)
    const inOutput = word("{trigger} in the output triggers", { trigger })
    const mark = button("loom-word-mark", on ? "\u2713" : "+", inOutput, () => this.toggle(trigger))
    mark.setAttribute("role", "switch")
    mark.setAttribute("aria-checked", String(on))
    const label = on ? word("Copy {trigger}; with Shift: take it out of the output triggers", { trigger })
      : word("Copy {trigger}; with Shift: put it into the output triggers", { trigger })
    const act = (event) => (event.shiftKey ? this.toggle(trigger) : this.copy(trigger))
    const text = button("loom-word-text", trigger, label, act)
    return element("span", { className: on ? "loom-word-chip loom-given" : "loom-word-chip" }, mark, text)
  }

  toggle(trigger) {
    const given = this.given()
    this.take(given.includes(trigger) ? given.filter((each) => each !== trigger) : [...given, trigger])
  }

  add(text) {
    this.own.value = ""
    const added = text.split(",").map((each) => each.trim()).filter((each) => each && !this.given().includes(each))
    if (added.length) this.take([...this.given(), ...added])
    this.own.focus()
  }

  /** What is as the file says it is not written into the row. */
  take(words) {
    const usual = this.usual()
    const same = words.length === usual.length && usual.every((each) => words.includes(each))
    this.item.words = same ? null : words
    this.said.textContent = ""
    this.done()
  }

  async copy(trigger) {
    const copied = await copy(trigger, this.element)
    this.said.textContent = copied ? word("copied: {text}", { text: trigger }) : word("not copied: the browser does not allow it")
  }
}
