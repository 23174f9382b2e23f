// What a node reports and what went wrong with it, on the node: as it is written, line by line, and as high as it needs.

import { showMeasure } from "../measures/measures.js"
import { element } from "../page/dom.js"
import { after, hide, lookAnew, takePlace, toCanvas, whileThere } from "../page/nodes.js"
import { spoken, word } from "../page/words.js"
import { listen } from "./told.js"
import { showChosen } from "./zeros.js"

const NAME = "$$lora_loom_report" // $$, or it is offered as an input of subgraphs
const LINE = 16 // px, as in css/told.css
const FRAME = 12 // px above and below the lines
const MOST = 12 // lines; more are scrolled
const MARGIN = 8 // px beside the text
const WIDTH = 340 // px of a new node, so that a report is no column of words

/** A report of a node; made after all its other widgets, it stands below them. */
export class Report {
  constructor(node) {
    this.node = node
    this.text = ""
    this.problem = false
    this.shape = { height: 0 }
    this.element = element("div", { className: "loom-report", tabIndex: 0, role: "note", "aria-label": word("Report") })
    this.widget = node.addDOMWidget(NAME, "loraloom_report", this.element, options(this.shape))
    this.widget.serialize = false
    this.widget.label = word("report")
    hide(this.widget, true)
    whileThere(node, (signal) => {
      this.element.addEventListener("wheel", (event) => this.wheel(event), { passive: false, signal })
      for (const kind of ["copy", "keydown"]) this.element.addEventListener(kind, (event) => this.keep(event), { signal })
    })
    after(node, "onResize", () => this.measure())
    listen(node, (entry) => this.take(entry))
    node.setSize([Math.max(node.size[0], WIDTH), node.size[1]])
  }

  take(entry) {
    showChosen(this.node, entry?.chosen)
    const text = showMeasure(this.node, entry, entry?.stale) ? "" : entry?.text
    this.show(spoken(text) ?? "", Boolean(entry?.problem))
  }

  /** An empty text takes the report away. */
  show(text, problem) {
    if (text === this.text && problem === this.problem) return
    const had = this.text !== ""
    this.text = text
    this.problem = problem
    this.element.textContent = text
    this.element.classList.toggle("loom-problem", problem)
    this.measure()
    if (had === (text === "")) {
      hide(this.widget, text === "")
      lookAnew(this.node)
      takePlace(this.node, this.element, ".loom-report")
    }
    const needed = this.node.computeSize()[1]
    if (text && this.node.size[1] < needed) this.node.setSize([this.node.size[0], needed])
    this.node.setDirtyCanvas?.(true, true)
  }

  measure() {
    const height = FRAME + LINE * Math.min(MOST, lines(this.text, this.node.size[0] - 6 * MARGIN))
    this.shape.height = height + 2 * MARGIN
    this.element.style.minHeight = `${height}px`
  }

  /** Scrolls a text that has more to show; the canvas has the wheel else. */
  wheel(event) {
    const { scrollHeight, clientHeight } = this.element
    if (event.ctrlKey || scrollHeight <= clientHeight + 1) toCanvas(event)
    else event.stopPropagation()
  }

  /** What is selected is copied, not the node; keys that scroll do not move it. */
  keep(event) {
    const scrolls = ["ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End", " "].includes(event.key)
    if (scrolls || (event.type === "copy" && !getSelection().isCollapsed)) event.stopPropagation()
  }
}

/** A report on the node of a subgraph, where the front end lets it have one. */
export function openOn(node) {
  const size = [...node.size]
  const report = new Report(node)
  if (node.widgets.includes(report.widget)) return
  report.widget.onRemove?.()
  listen(node, () => {})
  node.setSize(size)
}

/** The front end keeps these for good, with all that their functions can see: that is to be no node. */
function options(shape) {
  return {
    serialize: false, hideOnZoom: false, margin: MARGIN, getMinHeight: () => shape.height,
    getValue: () => "", setValue: () => {},
  }
}

const pen = document.createElement("canvas").getContext("2d")

/** How many lines a text takes in a width of so many pixels. */
function lines(text, width) {
  pen.font = "12px Inter, system-ui, sans-serif"
  const room = Math.max(width, 60)
  return text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(pen.measureText(line).width / room)), 0)
}
