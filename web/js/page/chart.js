// A chart of numbers over steps: an SVG as large as its box, whose text stays as large as it is. The pointer and the
// arrow keys move a cursor, and the line above the picture tells what is there.

import { drawn, element } from "./dom.js"
import { whenResized } from "./resize.js"
import { middleOf, nearest, scaleOf, short, thinned, tickText, ticksWithin } from "./scale.js"
import { word } from "./words.js"

const TOP = 8 // px above the plot
const BOTTOM = 20 // px for the steps below it
const LETTER = 7 // px of a digit
const DASHES = ["", "7 3", "2 3", "9 3 2 3"]
// How far a key moves the cursor: by samples of the first curve, or by a part of them all.
const KEYS = { ArrowLeft: -1, ArrowRight: 1, PageDown: 0.1, PageUp: -0.1, Home: -Infinity, End: Infinity }

export class Chart {
  /** label: what it shows, in a word or two. pick: called with a step that is clicked, or on which Enter is pressed. */
  constructor({ label, pick }) {
    this.label = label
    this.pick = pick
    this.size = [0, 0]
    this.cursor = null
    this.data = { total: 1, curves: [], marks: [] }
    this.legend = element("div", { className: "loom-chart-legend", "aria-hidden": "true" })
    this.picture = drawn("svg", { class: "loom-chart-picture", role: "img", tabindex: 0, "aria-label": label })
    this.said = element("span", { className: "loom-unseen", role: "status" })
    this.box = element("div", { className: "loom-chart-box" }, this.picture)
    this.element = element("div", { className: "loom-chart" }, this.legend, this.box, this.said)
    this.picture.addEventListener("pointermove", (event) => this.point(event))
    this.picture.addEventListener("pointerleave", () => this.at(null))
    this.picture.addEventListener("click", () => this.choose())
    this.picture.addEventListener("keydown", (event) => this.key(event))
    this.picture.addEventListener("blur", () => this.at(null))
    whenResized(this.box, this, (chart, width, height) => chart.resized(width, height))
  }

  /**
   * Shows curves `{name, steps, values, faint?, dashed?, right?}` (faint: beneath the others and not named; right: on a
   * scale of its own at the right) and marks `{step, value?, label}`, up to the step `total`.
   */
  show({ total, curves = [], marks = [] }) {
    this.data = { total, curves: styled(curves), marks }
    this.draw()
    this.tell()
  }

  /** Puts the cursor at a step, or takes it away. */
  at(step) {
    if (step === this.cursor) return
    this.cursor = step
    this.line()
    this.tell()
  }

  // -- drawing -------------------------------------------------------------------------------------------------------

  resized(width, height) {
    if (width === this.size[0] && height === this.size[1]) return
    this.size = [width, height]
    this.draw()
  }

  draw() {
    const [width, height] = this.size
    if (width < 40 || height < 40) return
    const { curves, marks } = this.data
    this.scales = scalesOf(curves, marks, (height - TOP - BOTTOM) / 38)
    const [left, right] = this.scales.map((scale) => scale ? 10 + LETTER * widest(scale) : 0)
    const total = Math.max(this.data.total || 0, last(curves), 1)
    this.plot = { left, top: TOP, width: width - left - (right || 16), height: height - TOP - BOTTOM, total }
    this.picture.replaceChildren(...this.axes(width), this.curves(), ...this.flags())
    this.cursorLine = drawn("g", { class: "loom-chart-cursor" })
    this.picture.append(this.cursorLine)
    this.picture.setAttribute("aria-label", sentence(this.label, this.data, total))
    this.line()
  }

  x(step) {
    return this.plot.left + this.plot.width * step / this.plot.total
  }

  y(value, right = false) {
    const { from, to } = this.scales[right ? 1 : 0]
    return this.plot.top + this.plot.height * (to - value) / (to - from)
  }

  axes(width) {
    const { left, top, height, total } = this.plot
    const end = left + this.plot.width
    const [scale, other] = this.scales
    const across = (tick) => drawn("path", { class: "loom-chart-grid", d: `M${left} ${round(this.y(tick))}H${end}` })
    const label = (x, y, anchor, text) => drawn("text", { x: round(x), y: round(y), "text-anchor": anchor }, text)
    const sides = [
      ...scale.ticks.map((tick) => label(left - 6, this.y(tick) + 4, "end", tickText(tick, scale.step))),
      ...(other?.ticks ?? []).map((tick) => label(end + 6, this.y(tick, true) + 4, "start", tickText(tick, other.step))),
    ]
    const steps = ticksWithin(0, total, this.plot.width / 80)
    const below = steps.map((tick) => {
      const x = Math.min(this.x(tick), width - LETTER * tickText(tick, 1).length / 2)
      return label(x, top + height + 15, "middle", tickText(tick, Math.max(1, steps[1] ?? 1)))
    })
    return [...scale.ticks.map(across), drawn("g", { class: "loom-chart-text" }, ...sides, ...below)]
  }

  /** In a picture of their own, which cuts off what is beyond the scale. */
  curves() {
    const { left, top, width, height } = this.plot
    const [x, y, wide, high] = [left, top - 2, Math.max(1, width + 2), height + 4]
    const inside = drawn("svg", { x, y, width: wide, height: high, viewBox: `${x} ${y} ${wide} ${high}` })
    for (const curve of [...this.data.curves].sort((a, b) => b.order - a.order || 0)) inside.append(this.path(curve))
    return inside
  }

  path({ steps, values, right, look, dash }) {
    const kept = thinned(steps, values, (step) => Math.round(this.x(step)))
    const points = kept.map((at) => `${round(this.x(steps[at]))} ${round(this.y(values[at], right))}`)
    const d = points.length === 1 ? `M${points[0]}m-2 0h4` : points.length ? `M${points.join("L")}` : ""
    return drawn("path", { class: `loom-chart-curve ${look}`, d, "stroke-dasharray": dash })
  }

  /** A mark with a value is a diamond there; one without, a line across with its words on top where they fit. */
  flags() {
    let free = 0
    return this.data.marks.flatMap(({ step, value, label }) => {
      const x = round(this.x(step))
      if (Number.isFinite(value)) return [spot(x, round(this.y(value)))]
      const { top, height, left, width } = this.plot
      const line = drawn("path", { class: "loom-chart-flag", d: `M${x} ${top}V${top + height}` })
      const wide = LETTER * label.length
      const start = Math.min(x + 4, left + width - wide)
      if (start < free) return [line]
      free = start + wide + 8
      return [line, drawn("text", { class: "loom-chart-words", x: start, y: top + 9 }, label)]
    })
  }

  line() {
    if (!this.plot || !this.cursorLine) return
    if (this.cursor === null) return this.cursorLine.replaceChildren()
    const x = round(this.x(this.cursor))
    const { top, height } = this.plot
    const met = this.readings().filter(({ curve, value }) => curve && Number.isFinite(value))
    const dots = met.map(({ curve, value }) =>
      drawn("circle", { class: curve.look, cx: x, cy: round(this.y(value, curve.right)), r: 3.5 }))
    this.cursorLine.replaceChildren(drawn("path", { d: `M${x} ${top}V${top + height}` }), ...dots)
  }

  // -- telling -------------------------------------------------------------------------------------------------------

  /** What each named curve and each kind of mark has at the cursor, or at the end where there is none. */
  readings() {
    const step = this.cursor ?? Infinity
    const curves = this.data.curves.filter((curve) => !curve.faint).map((curve) => {
      const at = nearest(curve.steps, Math.min(step, this.plot?.total ?? step))
      const within = this.cursor === null || (curve.steps[0] <= step && step <= last([curve]))
      return { curve, name: curve.name, value: within ? curve.values[at] : NaN }
    })
    const before = this.data.marks.filter((mark) => Number.isFinite(mark.value) && mark.step <= step)
    const marks = new Map(before.map(({ label, value }) => [label, value])) // the last of each kind
    return [...curves, ...[...marks].map(([name, value]) => ({ name, value }))]
  }

  tell() {
    const told = this.readings().map(({ curve, name, value }) => element("span", { className: "loom-chart-key" },
      curve ? sample(curve) : drawn("svg", { width: 10, height: 10 }, spot(5, 5)),
      element("span", { className: "loom-chart-name", title: name }, name), element("b", {}, short(value))))
    const step = this.cursor ?? last(this.data.curves.slice(0, 1))
    const where = element("span", { className: "loom-chart-step" }, step ? word("step {step}", { step: Math.round(step) }) : "")
    this.legend.replaceChildren(where, ...told)
  }

  say() {
    const told = this.readings().filter(({ value }) => Number.isFinite(value))
    const words = told.map(({ name, value }) => `${name} ${short(value)}`)
    this.said.textContent = word("step {step}: {values}", { step: Math.round(this.cursor), values: words.join(", ") })
  }

  // -- the cursor ----------------------------------------------------------------------------------------------------

  point(event) {
    if (!this.plot) return
    const { left, width } = this.picture.getBoundingClientRect() // of a node that is zoomed, not in its own pixels
    const x = (event.clientX - left) * this.size[0] / width
    this.at(this.onCurve((x - this.plot.left) / this.plot.width * this.plot.total))
  }

  /** The nearest step that the first curve has. */
  onCurve(step) {
    const { steps = [] } = this.data.curves[0] ?? {}
    return steps[nearest(steps, step)] ?? null
  }

  key(event) {
    const { steps = [] } = this.data.curves[0] ?? {}
    if (!steps.length) return
    const by = KEYS[event.key]
    const other = { Enter: Boolean(this.pick), Escape: this.cursor !== null }[event.key]
    if (by === undefined && !other) return
    event.preventDefault()
    event.stopPropagation()
    if (event.key === "Enter") return this.choose()
    if (event.key === "Escape") return this.at(null)
    const now = this.cursor === null ? (by < 0 ? steps.length : -1) : nearest(steps, this.cursor)
    const many = Number.isInteger(by) ? by * (event.shiftKey ? 10 : 1) : by * steps.length
    this.at(steps[Math.round(Math.max(0, Math.min(steps.length - 1, now + many)))])
    this.say()
  }

  choose() {
    if (this.cursor !== null) this.pick?.(this.cursor)
  }
}

/** Curves with a look of their own each: a colour and a dash, by their order among those that are named. */
function styled(curves) {
  let order = 0
  return curves.map((curve) => {
    const at = curve.faint ? Math.max(0, order - 1) : order++
    const dash = DASHES[curve.dashed ? Math.max(1, at % DASHES.length) : at % DASHES.length]
    const look = `loom-curve-${at % DASHES.length}`
    if (curve.faint) return { ...curve, order: Infinity, dash: "", look: `${look} loom-chart-faint` }
    return { ...curve, order: at, dash, look }
  })
}

/** The scale at the left and, if a curve asks for it, the one at the right. Outliers of faint curves are cut off. */
function scalesOf(curves, marks, count) {
  const of = (side, faint) => curves
    .filter((curve) => Boolean(curve.right) === side && Boolean(curve.faint) === faint)
    .flatMap(({ values }) => values)
  const left = [...of(false, false), ...middleOf(of(false, true)), ...marks.map(({ value }) => value)]
  const right = of(true, false)
  return [scaleOf(left, count), right.length ? scaleOf(right, count) : null]
}

function widest({ ticks, step }) {
  return Math.max(...ticks.map((tick) => tickText(tick, step).length))
}

function last(curves) {
  return Math.max(0, ...curves.map(({ steps }) => steps[steps.length - 1] ?? 0))
}

function sample({ look, dash }) {
  const line = drawn("path", { class: `loom-chart-curve ${look}`, d: "M1 5H21", "stroke-dasharray": dash })
  return drawn("svg", { width: 22, height: 10 }, line)
}

function spot(x, y) {
  return drawn("path", { class: "loom-chart-mark", d: `M${x} ${y - 4}L${x + 4} ${y}L${x} ${y + 4}L${x - 4} ${y}Z` })
}

function round(value) {
  return Math.round(value * 10) / 10
}

/** What a chart shows, for those who do not see it. */
function sentence(label, { curves, marks }, total) {
  const named = curves.filter((curve) => !curve.faint && curve.steps.length)
  if (!named.length) return word("{label}: nothing yet", { label })
  const told = named.map(({ name, steps, values }) => {
    const end = steps.length - 1
    const low = values.reduce((best, value, at) => (value < values[best] ? at : best), end)
    const [from, to, lowest] = [0, end, low].map((at) => word("{value} at step {step}", { value: short(values[at]), step: steps[at] }))
    return word("{name} goes from {from} to {to}, lowest {lowest}", { name, from, to, lowest })
  })
  const flags = marks.length === 1 ? [word("one mark")] : marks.length ? [word("{count} marks", { count: marks.length })] : []
  return word("{label}, {total} steps: {curves}.", { label, total, curves: [...told, ...flags].join("; ") })
}
