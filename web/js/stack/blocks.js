// The strengths per block of a row: presets, a slider for each part of the connected model, and the text itself.

import { element } from "../page/dom.js"
import { bare, partsOf, PRESETS, strengthOf, withStrength } from "./blocktext.js"
import { word } from "../page/words.js"

const MOST = 2 // of a slider; the text takes more

export class Blocks {
  constructor(item, done, model) {
    Object.assign(this, { item, done, model })
    this.preset = element("select", { className: "loom-row-preset", "aria-label": word("Blocks") })
    this.preset.addEventListener("change", () => this.take(this.preset.value))
    this.sliders = element("div", { className: "loom-row-sliders" })
    this.text = element("input", {
      type: "text", className: "loom-row-blocks", placeholder: word("such as {example}", { example: "IN=0.5, MID=1" }),
      "aria-label": word("Blocks as text"),
      autocomplete: "off", spellcheck: false,
    })
    this.text.addEventListener("change", () => this.take(this.text.value.trim()))
    this.element = element("div", { className: "loom-row-part", role: "group", "aria-label": word("Blocks") },
      element("div", { className: "loom-row-part-head" }, element("span", {}, word("Blocks")), this.preset),
      this.sliders, this.text)
  }

  show() {
    const model = this.model()
    const { blocks } = this.item
    const state = JSON.stringify([blocks, model.blocks, model.presets])
    if (state === this.state) return
    this.state = state
    this.text.value = blocks
    this.showPresets(blocks, model.presets)
    this.showSliders(blocks, model)
  }

  showPresets(blocks, presets) {
    const all = [...PRESETS.map(([name, text]) => [word(name), text]), ...Object.keys(presets).map((name) => [name, name])]
    const same = all.find(([, text]) => bare(text) === bare(blocks))
    this.preset.replaceChildren(...all.map(([name, text]) => element("option", { value: text }, name)),
      element("option", { value: "own", disabled: true }, word("own")))
    this.preset.value = same ? same[1] : "own"
  }

  /** Those that are there stay, or a slider would lose the pointer that drags it. */
  showSliders(blocks, { blocks: names, presets }) {
    if (this.names !== names) {
      this.names = names
      this.parts = partsOf(names)
      this.sliders.replaceChildren(...this.parts.map((part) => this.slider(part)))
    }
    this.parts.forEach((part, index) => {
      const [, range, shown] = this.sliders.children[index].children
      const value = strengthOf(blocks, part, presets)
      range.value = value ?? 1
      say(range, shown, value)
    })
  }

  slider(part) {
    const label = part.name.replace(/[._]+/g, " ")
    const range = element("input", {
      type: "range", min: 0, max: MOST, step: 0.05, "aria-label": word("Strength of {part}", { part: label }),
    })
    const shown = element("output", { className: "loom-row-value" })
    range.addEventListener("input", () => say(range, shown, range.valueAsNumber))
    range.addEventListener("change", () => {
      this.take(withStrength(this.item.blocks, this.parts, part, range.valueAsNumber, this.model().presets))
    })
    return element("label", { className: "loom-row-slider" }, element("span", {}, label), range, shown)
  }

  take(blocks) {
    this.item.blocks = blocks
    this.done()
  }
}

function say(range, shown, value) {
  shown.textContent = value === null ? word("mixed") : value.toFixed(2)
  range.style.setProperty("--loom-to", `${(100 * range.valueAsNumber) / MOST}%`)
}
