// A run that goes on, in the list: how far it is, how long it takes, its curve, and a button that stops and keeps it.

import { Chart } from "../page/chart.js"
import { element } from "../page/dom.js"
import { short } from "../page/scale.js"
import { pause } from "./actions.js"
import { choose } from "./choice.js"
import { Curve } from "./curve.js"
import { left, percent, standing } from "./words.js"
import { word } from "../page/words.js"

export class Card {
  constructor(run, open) {
    const about = { type: "button", className: "loom-runs-card-name", title: word("Show this run in the panel") }
    this.name = element("button", about)
    this.percent = element("span", { className: "loom-runs-card-percent" })
    const ends = { "aria-valuemin": "0", "aria-valuemax": "100" }
    this.bar = element("div", { className: "loom-runs-bar", role: "progressbar", ...ends },
      element("div", { className: "loom-runs-bar-done" }))
    this.line = element("div", { className: "loom-runs-card-line" })
    this.chart = new Chart({ label: word("Loss") })
    this.stop = element("button", { type: "button", className: "loom-runs-button" }, word("Pause and keep"))
    this.element = element("section", { className: "loom-runs-card", "aria-label": word("Running") },
      element("div", { className: "loom-runs-card-top" }, this.name, this.percent),
      this.bar, this.line, this.chart.element,
      element("div", { className: "loom-runs-card-foot" }, this.stop))
    this.name.addEventListener("click", () => {
      choose(this.run.id)
      open()
    })
    this.stop.addEventListener("click", () => this.end())
    this.show(run)
  }

  show(run) {
    this.run = run
    const done = percent(run)
    this.name.textContent = run.name
    this.name.disabled = !run.id // until it has its folder
    this.percent.textContent = `${done} %`
    this.bar.setAttribute("aria-valuenow", done)
    this.bar.setAttribute("aria-valuetext", standing(run))
    this.bar.setAttribute("aria-label", run.name)
    this.bar.firstChild.style.width = `${done}%`
    const loss = Number.isFinite(run.loss) ? word("loss {loss}", { loss: short(run.loss) }) : ""
    this.line.textContent = [standing(run), left(run), loss].filter(Boolean).join(" \u00b7 ")
    if (run.id && run.id !== this.curve?.id) this.curve = new Curve(run.id, () => this.draw())
    this.curve?.follow(run)
  }

  draw() {
    this.chart.show({ total: this.run.total, curves: this.curve.drawn(word("loss")) })
  }

  async end() {
    this.ending(true)
    if (await pause(this.run) === undefined) this.ending(false)
  }

  ending(is) {
    this.stop.disabled = is
    this.stop.textContent = is ? word("Pausing, saving its state") : word("Pause and keep")
  }
}
