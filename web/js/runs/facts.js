// The left of the panel: the curves, or the settings, or the report of a run.

import { Chart } from "../page/chart.js"
import { element } from "../page/dom.js"
import { Curve } from "./curve.js"
import { phrase, spoken, word } from "../page/words.js"
import { differences, plain } from "./words.js"

const TABS = [phrase("Curve"), phrase("Settings"), phrase("Report")]

export class Facts {
  /** pick: called with the step that is clicked on the curve. */
  constructor(pick) {
    this.curves = new Map()
    this.chart = new Chart({ label: word("Loss"), pick })
    this.rate = element("input", { type: "checkbox" })
    this.report = note("loom-runs-facts-report", word("Report"))
    this.settings = note("loom-runs-facts-settings", word("Settings"))
    const curve = element("div", { className: "loom-runs-facts-curve" }, this.chart.element)
    this.panes = [curve, this.settings, this.report].map((body) =>
      element("div", { className: "loom-runs-facts-pane", role: "tabpanel" }, body))
    this.tabs = TABS.map((name, at) => this.tab(word(name), at))
    this.with = element("label", { className: "loom-runs-facts-rate" }, this.rate, word("learning rate"))
    this.element = element("section", { className: "loom-runs-facts", "aria-label": word("Run") },
      element("div", { className: "loom-runs-facts-bar" },
        element("div", { className: "loom-tabs", role: "tablist" }, ...this.tabs), this.with),
      ...this.panes)
    this.rate.addEventListener("change", () => this.draw())
    this.turn(0)
  }

  tab(name, at) {
    const made = element("button", { type: "button", className: "loom-tab", role: "tab" }, name)
    made.addEventListener("click", () => this.turn(at))
    made.addEventListener("keydown", (event) => this.key(event, at))
    this.panes[at].setAttribute("aria-label", name)
    return made
  }

  turn(at) {
    this.tabs.forEach((tab, each) => {
      tab.setAttribute("aria-selected", String(each === at))
      tab.tabIndex = each === at ? 0 : -1
      this.panes[each].hidden = each !== at
    })
    this.with.hidden = at !== 0
  }

  key(event, at) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key]
    if (!by) return
    event.preventDefault()
    event.stopPropagation()
    const next = (at + by + TABS.length) % TABS.length
    this.turn(next)
    this.tabs[next].focus()
  }

  /** Draws the curve of a run and those of others over it. */
  show(run, others) {
    this.runs = [run, ...others]
    const ids = new Set(this.runs.map(({ id }) => id))
    for (const id of this.curves.keys()) if (!ids.has(id)) this.curves.delete(id)
    for (const each of this.runs) {
      if (!this.curves.has(each.id)) this.curves.set(each.id, new Curve(each.id, () => this.draw()))
      this.curves.get(each.id).follow(each)
    }
    const now = this.runs.map(({ id, name, state, step, total, best }) => [id, name, state, step, total, best]).join()
    if (now !== this.drawn) this.draw()
    this.drawn = now
  }

  draw() {
    const [run, ...others] = this.runs
    const own = this.curves.get(run.id)
    const { steps, learning_rate: values, validation } = own.log
    const over = others.flatMap((other) => this.curves.get(other.id)?.drawn(other.name, false) ?? [])
    const curves = [...own.drawn(run.name), ...over]
    if (this.rate.checked) curves.push({ name: word("learning rate"), steps, values, right: true, dashed: true })
    const marks = validation.map(([step, value]) => ({ step, value, label: word("validation") }))
    if (Number.isInteger(run.best)) marks.push({ step: run.best, label: word("best") })
    this.chart.show({ total: Math.max(...this.runs.map(reach)), curves, marks })
  }

  at(step) {
    this.chart.at(step)
  }

  /** Shows what the run tells of itself. */
  tell({ report, settings = [], problem, ...run }) {
    this.report.textContent = spoken([problem, report].filter(Boolean).join("\n\n")) || word("The report comes when it is done.")
    const told = differences(run).join(", ")
    const other = element("p", { className: "loom-runs-facts-differs" }, told && word("Other than the run before: {told}", { told }))
    const lines = settings.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, plain(value))])
    this.settings.replaceChildren(other, element("dl", {}, ...lines))
  }
}

/** A text that can be scrolled and copied. */
function note(className, label) {
  return element("div", { className, tabIndex: 0, role: "note", "aria-label": label })
}

/** How far to the right a run needs the chart: one that goes on, as far as it is to go. */
function reach({ state, step, total }) {
  return state === "running" ? total : step
}
