// What is seen of a run on its node: a headline, the bar, the curve, the newest previews, buttons and notes; and, seen
// from afar, the bar and two words.

import { Chart } from "../page/chart.js"
import { drawn, element } from "../page/dom.js"
import { percent } from "../runs/words.js"
import { Shots } from "./shots.js"
import { spoken, word } from "../page/words.js"

const CURVE = 150 // px, where the node leaves no more
const FRAME = 10 // px below the last part, as in css/run.css
const MARKS = {
  idle: "M6 1.5A4.5 4.5 0 1 1 5.99 1.5Z", running: "M3 1.5L10 6L3 10.5Z", stopped: "M2.5 2H5V10H2.5ZM7 2H9.5V10H7Z",
  finished: "M1.5 6.5L4.8 9.6L10.5 2.6", failed: "M2.5 2.5L9.5 9.5M9.5 2.5L2.5 9.5",
}
const OPEN = ["idle", "finished", "failed"] // marks that are lines

export class View {
  /** act: called with the name of the button that was pressed. */
  constructor(act) {
    this.act = act
    this.mark = drawn("path", {})
    this.headline = element("b", { className: "loom-body-headline" })
    this.beside = element("span", { className: "loom-body-beside" })
    this.next = element("div", { className: "loom-body-next" })
    this.bar = bar({ role: "progressbar", "aria-label": word("Steps"), "aria-valuemin": "0", "aria-valuemax": "100" })
    this.farBar = bar({})
    this.plan = element("dl", { className: "loom-body-plan" })
    this.chart = new Chart({ label: word("Loss") })
    this.curve = element("div", { className: "loom-body-curve" }, this.chart.element)
    this.shots = new Shots()
    this.buttons = element("div", { className: "loom-body-buttons" })
    this.said = element("div", { className: "loom-body-said", role: "status" })
    this.told = element("div", { className: "loom-report", tabIndex: 0, role: "note", "aria-label": word("Report") })
    this.count = element("summary", {})
    this.notes = element("details", { className: "loom-body-notes" }, this.count, this.told)
    this.far = element("div", { className: "loom-body-far", "aria-hidden": "true" })
    this.near = element("div", { className: "loom-body-near" },
      element("div", { className: "loom-body-head" }, sign(this.mark), this.headline, this.beside),
      this.next, this.bar, this.plan, this.curve, this.shots.element, this.buttons, this.said, this.notes)
    this.shown = {}
  }

  /** The height that it needs, whatever it has: the curve takes what is left over. */
  height() {
    const last = [...this.near.children].findLast((part) => part.offsetHeight)
    const stretch = this.curve.offsetHeight ? this.curve.offsetHeight - CURVE : 0
    return last ? last.offsetTop + last.offsetHeight + FRAME - stretch : 0
  }

  head(kind, { headline, beside = "", next = "" }) {
    this.near.dataset.kind = kind
    this.mark.setAttribute("d", MARKS[kind])
    this.mark.classList.toggle("loom-body-line", OPEN.includes(kind))
    for (const [part, text] of [[this.headline, headline], [this.beside, beside], [this.next, next]]) {
      if (part.textContent !== text) part.textContent = text
    }
    this.next.hidden = !next
  }

  /** The bar of a run; none, or one that only moves while it is not known how far it is. */
  progress(run) {
    this.bar.hidden = this.farBar.hidden = !run
    if (!run) return
    const done = percent(run)
    for (const each of [this.bar, this.farBar]) {
      each.classList.toggle("loom-body-unsure", run.state === "running" && !run.step)
      each.firstChild.style.width = `${done}%`
    }
    this.bar.setAttribute("aria-valuenow", done)
    this.bar.setAttribute("aria-valuetext", this.headline.textContent)
  }

  /** Lines of what a run would be. */
  plans(lines) {
    this.plan.hidden = !lines.length
    if (!this.isNew("plan", lines)) return
    this.plan.replaceChildren(...lines.flatMap(([label, text, { warn, more, dim } = {}]) => {
      const value = element("dd", { className: dim ? "loom-body-dim" : "", title: more ?? "" }, text)
      if (warn) value.prepend(element("span", { className: "loom-body-warn", role: "img", "aria-label": word("Warning: ") }, "!"))
      return [element("dt", {}, label), value]
    }))
  }

  /** A curve of what is known; without any it takes no room. */
  curves(data) {
    this.curve.hidden = !data
    if (!data) this.shown.curve = undefined // another run's may look the same
    const lengths = data?.curves.map(({ name, steps }) => [name, steps.length])
    if (data && this.isNew("curve", [data.total, lengths, data.marks])) this.chart.show(data)
  }

  /** Buttons `[name, text, {pressed?, main?, title?}]`. */
  actions(list) {
    this.buttons.hidden = !list.length
    if (!this.isNew("actions", list)) return
    const focused = this.buttons.contains(document.activeElement) ? document.activeElement.name : ""
    this.buttons.replaceChildren(...list.map(([name, text, { pressed, main, title } = {}]) => {
      const made = element("button", { type: "button", name, className: main ? "loom-body-main" : "", title: title ?? "" }, text)
      if (pressed !== undefined) made.setAttribute("aria-pressed", String(pressed))
      made.addEventListener("click", () => this.act(name, made))
      return made
    }))
    if (focused) this.buttons.querySelector(`[name="${focused}"]`)?.focus()
  }

  /** What was told of the node: notes to be opened, or what went wrong, which is open. */
  tell(text, problem) {
    this.notes.hidden = !text
    this.told.classList.toggle("loom-problem", problem)
    if (!this.isNew("told", [text, problem])) return
    const warns = /^warning:/m.test(text)
    this.told.textContent = spoken(text)
    this.count.textContent = warns ? word("Notes, with a warning") : word("Notes")
    this.count.hidden = problem
    if (problem || warns || this.opened) this.notes.open = problem || warns
    this.opened = problem || warns
  }

  say(text) {
    this.said.textContent = text
  }

  afar(lines) {
    if (!this.isNew("far", lines)) return
    this.far.replaceChildren(...lines.filter(Boolean).map((line) => element("span", {}, line)), this.farBar)
  }

  isNew(part, value) {
    const text = JSON.stringify(value)
    if (this.shown[part] === text) return false
    this.shown[part] = text
    return true
  }
}

function bar(properties) {
  return element("div", { className: "loom-body-bar", ...properties }, element("div", { className: "loom-body-done" }))
}

function sign(path) {
  return drawn("svg", { class: "loom-body-mark", viewBox: "0 0 12 12", "aria-hidden": "true" }, path)
}
