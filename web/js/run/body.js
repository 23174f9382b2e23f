// Train LoRA's body: what a run would be, how the one that goes on is, and what became of it, in one widget.

import { app } from "../../../../scripts/app.js"
import { element } from "../page/dom.js"
import { after, eachNode, takePlace, toCanvas, whileThere } from "../page/nodes.js"
import { whenResized } from "../page/resize.js"
import { heightened } from "../page/undo.js"
import { Curve } from "../runs/curve.js"
import { listen as listenToRuns } from "../runs/store.js"
import { listen, whenChanged } from "../told/told.js"
import { showChosen } from "../told/zeros.js"
import { act } from "./actions.js"
import { ask, questionOf } from "./before.js"
import { Details } from "./details.js"
import { tellOutside } from "./outside.js"
import { planOf } from "./plan.js"
import { View } from "./view.js"
import { hearRuns, shownBy } from "./which.js"
import { fromAfar, standing } from "./words.js"
import { spoken, word } from "../page/words.js"

const NAME = "$$lora_loom_run" // $$, or it is offered as an input of subgraphs
const MARGIN = 8 // px beside it
const WIDTH = 340 // px of a new node
const PAUSE = 300 // ms in which a person may type on
const STALE = 10000 // ms after which pictures and memory may be others
const FAR = 0.6 // of the canvas's scale: below it letters of 12 px cannot be read

const bodies = new WeakMap() // by node

/** Once: every body on screen looks when something is new. */
export function hearAll() {
  listenToRuns(lookAll)
  hearRuns(lookAll)
  whenChanged(lookAll)
}

/** Once the canvas is there: from afar only what can be read is shown. */
export function watchZoom() {
  after(app.canvas.ds, "computeVisibleArea", () => {
    const far = app.canvas.ds.scale < FAR
    if (far !== watchZoom.far) document.body.classList.toggle("loom-far", (watchZoom.far = far))
  })
}

function lookAll() {
  eachNode(app.rootGraph, (node) => bodies.get(node)?.look())
  tellOutside()
}

export class Body {
  constructor(node) {
    this.node = node
    this.shape = { height: 96 }
    this.entry = undefined
    this.element = element("div", { className: "loom loom-body" })
    this.widget = node.addDOMWidget(NAME, "loraloom_run", this.element, options(this.shape))
    this.widget.serialize = false
    this.widget.label = word("run")
    hidePictures(node)
    bodies.set(node, this)
    listen(node, (entry) => this.take(entry))
    whileThere(node, (signal) => {
      this.element.addEventListener("wheel", (event) => this.wheel(event), { passive: false, signal })
      for (const kind of ["copy", "keydown"]) this.element.addEventListener(kind, keep, { signal })
    })
    after(node, "onAdded", () => this.start())
    after(node, "onRemoved", () => this.stop())
    after(node, "onConnectionsChange", () => this.look())
    node.setSize([Math.max(node.size[0], WIDTH), node.size[1]])
  }

  /** The node came into a graph. */
  start() {
    if (this.view) return
    this.view = new View((name, button) => act(name, button, this))
    this.element.replaceChildren(this.view.near, this.view.far)
    whenResized(this.view.near, this, (body) => body.fit())
    takePlace(this.node, this.element, ".loom-body")
    requestAnimationFrame(() => this.look())
  }

  /** The front end may hold a node that is gone for good; what is drawn anew when it comes back goes. */
  stop() {
    clearTimeout(this.asking)
    this.question = undefined
    this.view = this.curve = this.details = undefined
    this.element.replaceChildren()
  }

  /** What is told of the node, by the run or by a refusal of it. */
  take(entry) {
    this.entry = entry
    this.look()
  }

  look() {
    if (!this.view || !this.node.graph) return
    const { text = "", problem = false } = this.entry ?? {}
    const { run, same } = shownBy(this.node) ?? {}
    this.run = run
    const runs = run?.state === "running"
    const idle = !runs && (!run || !same || problem)
    this.follow(run)
    this.view.tell(text, problem)
    this.plan(idle)
    this.head(problem && !runs, idle)
    this.view.progress(idle || run.state === "finished" ? null : run)
    this.view.curves(run && !problem && (same || runs) ? this.drawn() : null)
    this.view.shots.show(run?.id, idle ? [] : run.previews ?? [], this.details?.found?.pictures ?? [])
    this.view.actions(this.actions(idle))
    this.view.afar(problem && !runs ? [word("Failed")] : idle ? [word("Ready")] : fromAfar(run))
    showChosen(this.node, this.entry?.chosen ?? this.foreseen)
  }

  head(problem, idle) {
    const { run, entry } = this
    const failed = !problem && !idle && run.state === "stopped" && this.details?.found?.problem
    if (problem) return this.view.head("failed", { headline: word("This did not work") })
    if (failed) return this.view.head("failed", { headline: standing(run).headline, next: spoken(failed) })
    if (!idle) return this.view.head(run.state, standing(run, this.curve?.log.loss))
    if (entry?.prompt && !entry.problem) return this.view.head("running", { headline: spoken(entry.text.split("\n")[0]) })
    const last = run ? standing(run) : null
    const next = last ? word("Last run: {told}", { told: [last.headline, last.beside].filter(Boolean).join(", ") }) : ""
    this.view.head("idle", { headline: word("Ready to train"), next })
  }

  // -- before a run --------------------------------------------------------------------------------------------------

  /** Shows what a run would be, and asks anew when the question or, since long ago, the answer may have changed. */
  plan(idle) {
    const question = questionOf(this.node)
    if (question !== this.question || (idle && Date.now() - this.askedAt > STALE)) {
      this.question = question
      this.askedAt = Date.now()
      clearTimeout(this.asking)
      this.asking = setTimeout(() => this.asked(question), PAUSE)
    }
    this.view.plans(idle && this.answer ? planOf(this.node, this.answer) : [])
  }

  async asked(question) {
    const answer = await ask(question)
    if (question !== this.question || !this.view) return
    this.answer = answer
    this.askedAt = Date.now()
    const names = answer?.automatic ?? []
    this.foreseen = names.length ? Object.fromEntries(names.map((name) => [name, answer.values[name]])) : undefined
    this.look()
  }

  // -- a run ---------------------------------------------------------------------------------------------------------

  /** The numbers and details of the run that is shown, as it goes on. */
  follow(run) {
    if (run?.id !== this.curve?.id) {
      const id = run?.id
      this.curve = id ? new Curve(id, () => this.curve?.id === id && this.look()) : undefined
      this.details = id ? new Details(id, () => this.details?.id === id && this.look()) : undefined
      this.drawing = null
      this.question = undefined // as memory is another one, and what the run needed is known
      this.view.say("")
    }
    this.curve?.follow(run)
    this.details?.follow(run)
  }

  /** The curve of the run; the one before while its numbers are asked for anew. */
  drawn() {
    const { log } = this.curve ?? {}
    if (!log?.steps.length) return this.drawing
    const curves = this.curve.drawn(word("loss"))
    const rate = { name: word("learning rate"), steps: log.steps, values: log.learning_rate, dashed: true, right: true }
    if (this.rated) curves.push(rate)
    const marks = log.validation.map(([step, value]) => ({ step, value, label: word("validation") }))
    this.drawing = { total: this.run.total, curves, marks }
    return this.drawing
  }

  actions(idle) {
    const { run } = this
    if (!run || (idle && !run.id)) return []
    const compare = ["compare", word("Compare steps"), { title: word("Opens the run in the panel below") }]
    if (idle) return [compare]
    const rate = this.curve?.log.steps.length && ["rate", word("Learning rate"), { pressed: Boolean(this.rated) }]
    const pause = ["pause", run.id ? word("Pause and keep") : word("Stop"), { main: true, title: word("Queue again to go on") }]
    if (run.state === "running") return [pause, rate].filter(Boolean)
    const step = run.kept ?? run.saved?.[run.saved.length - 1]
    const name = run.state === "finished" ? word("Use in a stack") : word("Use step {step}", { step })
    const use = step && ["use", name, { main: true, title: word("Copies it into the loras folder and puts it on Load LoRA Stack") }]
    const report = this.details?.found?.report && ["report", word("Report"), {}]
    return [use, compare, report, ["folder", word("Folder"), { title: word("Copies the folder's name") }], rate].filter(Boolean)
  }

  // -- as large as it needs ------------------------------------------------------------------------------------------

  /** The node is as high as its body needs, and higher only where it was made so; that is no step to undo. */
  fit() {
    if (!this.view?.near.offsetWidth) return
    const height = this.view.height()
    this.shape.height = height + 2 * MARGIN
    this.element.style.minHeight = `${height}px`
    const { node } = this
    const [before, needed] = [this.needed ?? node.computeSize()[1], this.lowest(height)]
    this.needed = needed
    const wanted = node.size[1] <= before + 1 ? needed : Math.max(needed, node.size[1])
    if (wanted !== node.size[1]) node.setSize([node.size[0], wanted])
    heightened(node)
    node.setDirtyCanvas?.(true, true)
  }

  /** The least height of the node. Nodes 2.0, which does not show all widgets, gives the body whatever is left over. */
  lowest(height) {
    if (!window.LiteGraph.vueNodesMode) return this.node.computeSize()[1]
    return this.node.size[1] - Math.max(0, this.element.offsetHeight - height)
  }

  /** Scrolls notes that have more to show; the canvas has the wheel else. */
  wheel(event) {
    const { told } = this.view ?? {}
    const scrolls = told?.contains(event.target) && told.scrollHeight > told.clientHeight + 1 && !event.ctrlKey
    if (scrolls) event.stopPropagation()
    else toCanvas(event)
  }
}

/** Keys on a button or the curve, and the copy of what is selected, are not the canvas's. */
function keep(event) {
  if (event.type === "keydown" ? !event.ctrlKey && !event.metaKey : !getSelection().isCollapsed) event.stopPropagation()
}

/** The pictures that the server sends with the bar, for who has no body to look at, are none of this node's. */
function hidePictures(node) {
  node.hideOutputImages = true
  Object.defineProperty(node, "imgs", { get: () => undefined, set: () => {}, configurable: true })
}

/** The front end keeps these for good, with all that their functions can see: that is to be no node. */
function options(shape) {
  return {
    serialize: false, hideOnZoom: false, margin: MARGIN, getMinHeight: () => shape.height,
    getValue: () => "", setValue: () => {},
  }
}
