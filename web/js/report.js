// What a node reports and what went wrong with it, on the node: as it is written, line by line, and as high as it needs.
//
// The front end has a widget for that, which shows two lines on the canvas, and in Nodes 2.0 all lines as one; what looks
// like a tag it leaves out. It writes into a widget of its name if there is one, and this is one.

import { api } from "../../../scripts/api.js"
import { element } from "./dom.js"
import { after, hide, lookAnew, nodeOf, toCanvas } from "./nodes.js"

const NAME = "$$node-text-preview"
const LINE = 16 // px, as in stack.css
const FRAME = 12 // px above and below the lines
const MOST = 12 // lines; more are scrolled
const MARGIN = 8 // px beside the text
const WIDTH = 340 // px of a new node, so that a report is no column of words

const reports = new WeakMap() // by node
const kept = new Map() // by graph and node, for nodes that are made anew, as after an undo

/** A report of a node; made after all its other widgets, it stands below them. */
export class Report {
  constructor(node) {
    this.node = node
    this.text = ""
    this.element = element("div", { className: "loom-report", tabIndex: 0, role: "note", "aria-label": "Report" })
    this.widget = node.addDOMWidget(NAME, "loraloom_report", this.element, {
      serialize: false, hideOnZoom: false, margin: MARGIN, getMinHeight: () => this.height() + 2 * MARGIN,
      getValue: () => this.text, setValue: (text) => this.show(text),
    })
    this.widget.serialize = false
    this.widget.label = "report"
    hide(this.widget, true)
    reports.set(node, this)
    this.element.addEventListener("wheel", (event) => this.wheel(event), { passive: false })
    for (const kind of ["copy", "keydown"]) this.element.addEventListener(kind, (event) => this.keep(event))
    after(node, "onExecuted", (output) => output?.text && this.show(output.text.join("\n")))
    after(node, "onExecutionStart", () => this.problem && this.show(""))
    after(node, "onAdded", () => this.remember())
    after(node, "onConfigure", () => this.remember())
    node.setSize([Math.max(node.size[0], WIDTH), node.size[1]])
  }

  /** An empty text takes the report away. */
  show(text, problem = false) {
    const had = this.text !== ""
    this.text = text
    this.problem = problem
    this.element.textContent = text
    this.element.classList.toggle("loom-problem", problem)
    this.element.style.minHeight = `${this.height()}px`
    kept.set(this.place(), { text, problem })
    if (had === (text === "")) {
      hide(this.widget, text === "")
      lookAnew(this.node)
    }
    const needed = this.node.computeSize()[1]
    if (text && this.node.size[1] < needed) this.node.setSize([this.node.size[0], needed])
    this.node.setDirtyCanvas?.(true, true)
  }

  remember() {
    const { text, problem } = kept.get(this.place()) ?? {}
    if (text && !this.text) this.show(text, problem)
  }

  place() {
    return `${this.node.graph?.id} ${this.node.id}`
  }

  height() {
    return FRAME + LINE * Math.min(MOST, lines(this.text, this.node.size[0] - 6 * MARGIN))
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

/** Shows on our nodes, in its own words, what the server says went wrong: in the run, and before it when it was refused. */
export function hearProblems() {
  api.addEventListener("execution_error", ({ detail }) => tell(detail.node_id, detail.exception_message))
  const { queuePrompt } = api
  api.queuePrompt = async function (...values) {
    try {
      const answer = await queuePrompt.apply(this, values)
      tellRefused(answer?.node_errors)
      return answer
    } catch (error) {
      tellRefused(error.response?.node_errors)
      throw error
    }
  }
}

function tellRefused(nodes) {
  for (const [id, { errors }] of Object.entries(nodes ?? {})) {
    const [first] = errors.filter((error) => error.type === "custom_validation_failed")
    if (first) tell(id, first.details.replace(`${first.extra_info?.input_name} - `, ""))
  }
}

function tell(executionId, words) {
  reports.get(nodeOf(executionId))?.show(words.trim(), true)
}

const pen = document.createElement("canvas").getContext("2d")

/** How many lines a text takes in a width of so many pixels. */
function lines(text, width) {
  pen.font = "12px Inter, system-ui, sans-serif"
  const room = Math.max(width, 60)
  return text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(pen.measureText(line).width / room)), 0)
}
