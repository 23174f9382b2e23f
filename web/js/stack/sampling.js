// The part of sampling that a row is on for: two handles on one bar, from the most noise to none.

import { element } from "../page/dom.js"
import { phrase, word } from "../page/words.js"

const STEP = 0.01
const PRESETS = [
  [phrase("all of sampling"), 0, 1], [phrase("first half: composition"), 0, 0.5], [phrase("second half: details"), 0.5, 1],
]

export class Sampling {
  constructor(item, done) {
    Object.assign(this, { item, done })
    this.preset = element("select", { className: "loom-row-preset", "aria-label": word("Part of sampling") },
      ...PRESETS.map(([name], index) => element("option", { value: String(index) }, word(name))),
      element("option", { value: "own", disabled: true }, word("own")))
    this.preset.addEventListener("change", () => this.take(...PRESETS[this.preset.value].slice(1)))
    this.start = this.handle(word("From this share of sampling on"))
    this.end = this.handle(word("Up to this share of sampling"))
    this.bar = element("div", { className: "loom-row-span" }, this.start, this.end)
    this.said = element("output", { className: "loom-row-value" })
    this.element = element("div", { className: "loom-row-part", role: "group", "aria-label": word("Part of sampling") },
      element("div", { className: "loom-row-part-head" }, element("span", {}, word("Sampling")), this.preset),
      element("div", { className: "loom-row-slider" }, this.bar, this.said))
  }

  handle(label) {
    const made = element("input", { type: "range", min: 0, max: 1, step: STEP, "aria-label": label })
    made.addEventListener("input", () => this.keepApart(made))
    made.addEventListener("change", () => {
      if (made === this.start) this.take(made.valueAsNumber, this.item.end)
      else this.take(this.item.start, made.valueAsNumber)
    })
    return made
  }

  /** A handle does not pass the other. */
  keepApart(moved) {
    const [start, end] = [this.start.valueAsNumber, this.end.valueAsNumber]
    if (moved === this.start) this.start.valueAsNumber = Math.min(start, end - STEP)
    else this.end.valueAsNumber = Math.max(end, start + STEP)
    this.say(this.start.valueAsNumber, this.end.valueAsNumber)
  }

  show() {
    const { start, end } = this.item
    this.start.valueAsNumber = start
    this.end.valueAsNumber = end
    const same = PRESETS.findIndex(([, first, last]) => first === start && last === end)
    this.preset.value = same < 0 ? "own" : String(same)
    this.say(start, end)
  }

  say(start, end) {
    const [from, to] = [start, end].map((share) => Math.round(100 * share))
    this.said.textContent = `${from}\u2013${to} %`
    this.bar.style.setProperty("--loom-from", `${from}%`)
    this.bar.style.setProperty("--loom-to", `${to}%`)
  }

  take(start, end) {
    Object.assign(this.item, { start: round(start), end: round(end) })
    this.done()
  }
}

function round(share) {
  return Math.round(share * 100) / 100
}
