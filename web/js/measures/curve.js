// The error of every rank as a curve, in the pixels of the page, so that its letters have the size of the page's.

import { drawn, element } from "../page/dom.js"
import { word } from "../page/words.js"

const HEIGHT = 132
const FRAME = { left: 40, right: 10, top: 10, bottom: 24 }
const STEPS = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 5, PageDown: -5 }

/** `choose` is called with the place on the x axis that was clicked, or that Enter was pressed at. */
export class Curve {
  constructor(choose, height = HEIGHT) {
    this.height = height
    this.choose = choose
    this.svg = drawn("svg", { class: "loom-curve", tabindex: 0, role: "slider", height })
    this.box = element("div", { className: "loom-plot" }, this.svg)
    this.told = element("div", { className: "loom-told", role: "status" })
    this.element = element("figure", { className: "loom-figure" })
    this.sizes = new ResizeObserver(() => this.draw())
    this.svg.addEventListener("pointermove", (event) => this.point(this.nearest(event)))
    this.svg.addEventListener("pointerleave", () => this.point(undefined))
    this.svg.addEventListener("blur", () => this.point(undefined))
    this.svg.addEventListener("click", (event) => this.choose?.(this.points[this.nearest(event)][0]))
    this.svg.addEventListener("keydown", (event) => this.key(event))
  }

  start() {
    this.sizes.observe(this.box)
  }

  stop() {
    this.sizes.disconnect()
  }

  show({ title, across, up, points, told, mark }) {
    Object.assign(this, { title, across, up, points, words: told, mark, at: undefined })
    const caption = element("figcaption", { className: "loom-caption" }, title)
    this.element.replaceChildren(caption, this.box, this.told)
    const [least, most] = [points[0][0], points.at(-1)[0]]
    const label = word("{title}: read it with the arrow keys", { title })
    for (const [key, value] of Object.entries({ label, valuemin: least, valuemax: most })) {
      this.svg.setAttribute(`aria-${key}`, value)
    }
    this.draw()
    this.point(undefined)
  }

  draw() {
    const width = this.box.clientWidth
    if (!width || !this.points) return
    this.width = width
    const most = Math.max(...this.points.map(([, y]) => y), this.mark?.[1] ?? 0) || 1
    const [from, to] = [this.points[0][0], this.points.at(-1)[0]]
    this.x = (value) => FRAME.left + (width - FRAME.left - FRAME.right) * (to > from ? (value - from) / (to - from) : 0.5)
    this.y = (value) => this.height - FRAME.bottom - (this.height - FRAME.top - FRAME.bottom) * (value / most)
    const path = this.points.map(([x, y]) => `${this.x(x).toFixed(1)},${this.y(y).toFixed(1)}`).join(" ")
    this.pointer = drawn("line", { class: "loom-pointer", y1: FRAME.top, y2: this.y(0), visibility: "hidden" })
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`)
    this.svg.replaceChildren(...this.axes(most, from, to), this.pointer,
      drawn("polyline", { class: "loom-path", points: path }), ...this.marked())
    this.point(this.at)
  }

  axes(most, from, to) {
    const text = (x, y, anchor, words) => drawn("text", { x, y, "text-anchor": anchor }, words)
    const middle = Math.round((from + to) / 2)
    const lines = [0, 0.5, 1].map((share) => {
      const y = this.y(most * share)
      return [drawn("line", { class: "loom-measure-grid", x1: FRAME.left, x2: this.width - FRAME.right, y1: y, y2: y }),
        text(FRAME.left - 6, y + 4, "end", percent(most * share))]
    })
    const below = this.height - 7
    const across = to > from ? [text(this.x(from), below, "start", `${this.across} ${from}`),
      text(this.x(middle), below, "middle", String(middle))] : []
    return [...lines.flat(), ...across, text(this.x(to), below, "end", String(to))]
  }

  marked() {
    if (!this.mark) return []
    const [x, y] = [this.x(this.mark[0]), this.y(this.mark[1])]
    return [drawn("line", { class: "loom-chosen", x1: x, x2: x, y1: FRAME.top, y2: this.y(0) }),
      drawn("circle", { class: "loom-chosen", cx: x, cy: y, r: 4 })]
  }

  nearest(event) {
    const at = event.offsetX
    const away = this.points.map(([x]) => Math.abs(this.x(x) - at))
    return away.indexOf(Math.min(...away))
  }

  /** Says what is at a point; without one, how to find out. */
  point(at) {
    this.at = at
    const sets = word("Point at the curve to read it; click to set that rank.")
    const hint = this.choose ? sets : word("Point at the curve to read it.")
    this.told.textContent = this.words[at] ?? hint
    this.svg.setAttribute("aria-valuetext", this.words[at] ?? "")
    this.svg.setAttribute("aria-valuenow", this.points[at]?.[0] ?? this.mark?.[0] ?? this.points[0][0])
    if (!this.pointer) return
    this.pointer.setAttribute("visibility", at === undefined ? "hidden" : "visible")
    if (at === undefined) return
    for (const end of ["x1", "x2"]) this.pointer.setAttribute(end, this.x(this.points[at][0]))
  }

  key(event) {
    const last = this.points.length - 1
    const to = event.key === "Home" ? 0 : event.key === "End" ? last : (this.at ?? this.chosen()) + STEPS[event.key]
    if (event.key === "Enter" && this.at !== undefined) this.choose?.(this.points[this.at][0])
    else if (Number.isNaN(to)) return
    else this.point(Math.max(0, Math.min(last, to)))
    event.preventDefault()
    event.stopPropagation()
  }

  /** The point that is nearest to the one that was chosen. */
  chosen() {
    const away = this.points.map(([x]) => Math.abs(x - (this.mark?.[0] ?? 0)))
    return away.indexOf(Math.min(...away))
  }
}

function percent(share) {
  return `${Number((100 * share).toPrecision(2))} %`
}
