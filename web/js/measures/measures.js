// What a node measured, on the node: a sentence, what to do, and the figures as tables and curves with real letters.

import { element } from "../page/dom.js"
import { after, hide, lookAnew, takePlace, toCanvas, whileThere } from "../page/nodes.js"
import { captured, heightened } from "../page/undo.js"
import { spoken, word } from "../page/words.js"
import { Curve } from "./curve.js"
import { addressOf, gallery, openLarge } from "./large.js"
import { Live } from "./live.js"
import { inLanguage } from "./spoken.js"
import { drawTable } from "./tables.js"

const NAME = "$$lora_loom_measure" // $$, or it is offered as an input of subgraphs
const PICTURE = "$$canvas-image-preview" // of the front end, below the figures
const MARGIN = 8 // px beside and above
const ROWS = 2 // of pictures that are not folded
const MOST = 560 // px high; more is scrolled
const KINDS = ["Interference", "MergeLora", "ResizeLora", "ExtractLora", "ConvertLora", "LeaveOneOut", "Report", "DatasetDoctor", "Passport", "AverageSteps", "Health"]
const REDRAWN = ["LoraLoom_Interference", "LoraLoom_LeaveOneOut", "LoraLoom_Report", "LoraLoom_Health"] // whose picture is seen here, larger
const CUTS = ["LoraLoom_MergeLora", "LoraLoom_ResizeLora"]
const shown = new WeakMap() // by node

/** The figures of a node that has any. */
export function measures(node) {
  if (KINDS.some((kind) => node.comfyClass === `LoraLoom_${kind}`)) shown.set(node, new Measures(node))
}

/**
 * Shows the figures of what was told of a node. True when they take the place of the text, which is among them.
 * `stale` is whether the node's other inputs are not those of the run any more.
 */
export function showMeasure(node, entry, stale) {
  return shown.get(node)?.take(entry, stale) ?? false
}

class Measures {
  constructor(node) {
    this.node = node
    this.open = false
    this.shape = { height: 0 }
    this.inner = element("div", { className: "loom-inner" })
    this.element = element("div", { className: "loom loom-measure", role: "region", "aria-label": word("Figures") }, this.inner)
    this.live = new Live(node, (answer) => this.foresee(answer))
    this.sizes = new ResizeObserver(() => this.fit())
    this.widget = node.addDOMWidget(NAME, "loraloom_measure", this.element, options(this.shape))
    this.widget.serialize = false
    this.widget.label = word("figures")
    hide(this.widget, true)
    whileThere(node, (signal) => {
      this.element.addEventListener("wheel", (event) => this.wheel(event), { passive: false, signal })
      for (const kind of ["copy", "keydown"]) this.element.addEventListener(kind, keep, { signal })
    })
    if (REDRAWN.includes(node.comfyClass)) withoutPicture(node)
    after(node, "onAdded", () => this.added())
    after(node, "onRemoved", () => this.removed())
  }

  added() {
    takePlace(this.node, this.element, ".loom-measure")
    this.sizes.observe(this.inner)
    this.curve?.start()
    if (CUTS.includes(this.node.comfyClass) && !this.entry) this.wait()
  }

  removed() {
    this.sizes.disconnect()
    this.curve?.stop()
  }

  /** What can be said before a run. */
  wait() {
    this.inner.replaceChildren(element("div", { className: "loom-advice" }, word("Run once to see size and error here, live.")))
    this.reveal(true)
  }

  take(entry, stale) {
    if (entry?.measure && entry.measure === this.measure) {
      this.mark(stale)
      this.live.look()
      return true
    }
    const works = Boolean(entry?.prompt && this.measure) // until it is done, what there was before
    this.element.classList.toggle("loom-old", works)
    if (works) return false
    this.entry = entry
    this.measure = entry?.measure
    this.problem = this.ahead = this.stale = undefined
    if (this.measure) this.show(stale)
    else if (!entry && CUTS.includes(this.node.comfyClass)) this.wait()
    else this.reveal(false)
    return Boolean(this.measure)
  }

  show(stale) {
    this.live.take(this.measure.live)
    this.draw(this.measure)
    this.mark(stale)
    this.reveal(true)
    this.live.look()
    if (this.entry.images?.length) this.pictured()
  }

  /** On the canvas the picture below comes later than the figures, and makes the node higher, too. */
  pictured(frames = 120) {
    if (this.node.widgets?.some(({ name }) => name === PICTURE)) this.fit()
    else if (frames && this.node.graph) requestAnimationFrame(() => this.pictured(frames - 1))
  }

  draw(told) {
    const measure = inLanguage(told)
    const reading = this.curve?.svg === document.activeElement
    this.curve?.stop()
    this.curve = undefined
    this.drawn = measure
    this.state = element("div", { className: "loom-state", role: "status" })
    const first = measure.tables.filter((table) => !table.folded).map(drawTable)
    this.inner.replaceChildren(
      element("div", { className: "loom-verdict" }, measure.verdict),
      ...(measure.advice ? [element("div", { className: "loom-advice" }, measure.advice)] : []),
      this.state, ...(measure.curve ? [this.plot(measure.curve)] : []), ...first, ...gallery(measure.rows).slice(0, ROWS), ...this.more(measure))
    this.say()
    if (reading) this.curve?.svg.focus()
  }

  plot(curve) {
    const choose = this.measure.live ? (rank) => this.set("rank", rank) : undefined
    this.curve = new Curve(choose)
    this.curve.show(curve)
    this.curve.start()
    return this.curve.element
  }

  /** The folded figures and the words of the report. */
  more(measure) {
    const folded = element("div", { className: "loom-fold", hidden: !this.open },
      ...measure.tables.filter((table) => table.folded).map(drawTable), ...gallery(measure.rows).slice(ROWS), this.words())
    const button = element("button", { type: "button", className: "loom-measure-button", "aria-expanded": String(this.open) },
      element("span", { className: "loom-marker", "aria-hidden": "true" }), word("All figures"))
    button.addEventListener("click", () => {
      this.open = !this.open
      folded.hidden = !this.open
      button.setAttribute("aria-expanded", String(this.open))
    })
    const large = element("button", { type: "button", className: "loom-measure-button" }, word("Open large"))
    large.addEventListener("click", () => this.enlarge())
    return [element("div", { className: "loom-measure-actions" }, button, large), folded]
  }

  words() {
    return element("div", { className: "loom-measure-words", tabIndex: 0, role: "note", "aria-label": word("Report") }, spoken(this.entry.text))
  }

  enlarge() {
    const { verdict, advice, tables, curve, rows } = this.drawn
    const large = curve && new Curve(undefined, 260)
    large?.show(curve)
    const alt = word("The figures as one picture")
    const whole = (this.entry.images ?? []).map((file) => element("img", { className: "loom-whole", src: addressOf(file), alt }))
    openLarge(this.node.title, [
      element("div", { className: "loom-verdict" }, verdict), ...(advice ? [element("div", { className: "loom-advice" }, advice)] : []),
      ...(large ? [large.element] : []), ...tables.map(drawTable), ...gallery(rows), this.words(), ...whole], () => large?.stop())
    large?.start()
  }

  /** An answer of the server for the settings that the node has now; null when they are those of the run. */
  foresee(answer) {
    this.problem = answer?.problem
    this.ahead = answer !== null && !answer.problem
    if (!this.problem) this.draw(answer ? { ...this.measure, ...answer, live: this.measure.live, rows: [] } : this.measure)
    this.say()
  }

  mark(stale) {
    if (stale === this.stale) return
    this.stale = stale
    this.say()
  }

  say() {
    const old = this.stale ? word("Other inputs changed since the last run: these figures are of that run.") : ""
    const ahead = this.ahead ? word("With these settings; not run yet.") : ""
    this.state.textContent = this.problem ?? [ahead, old].filter(Boolean).join(" ")
    this.state.classList.toggle("loom-warned", Boolean(this.problem || old))
    this.state.hidden = !this.state.textContent
  }

  set(name, value) {
    const widget = this.node.widgets.find((each) => each.name === name)
    widget.value = value
    widget.callback?.(value)
    captured()
  }

  reveal(on) {
    if (this.widget.hidden === !on) return
    hide(this.widget, !on)
    lookAnew(this.node)
    this.fit()
  }

  /** The node is as high as its figures need, and higher only where it was made so. */
  fit() {
    if (!this.node.graph) return
    const height = Math.min(this.inner.offsetHeight || this.shape.inner || 60, MOST)
    this.shape.inner = height
    this.shape.height = height + 2 * MARGIN
    this.element.style.minHeight = `${height}px`
    const needed = this.node.computeSize()[1]
    const wanted = this.node.size[1] <= (this.needed ?? 0) + 1 ? needed : Math.max(needed, this.node.size[1])
    this.needed = needed
    if (wanted !== this.node.size[1]) {
      this.node.setSize([this.node.size[0], wanted])
      heightened(this.node)
    }
    this.node.setDirtyCanvas?.(true, true)
  }

  wheel(event) {
    const scrolls = event.target.closest(".loom-scroll, .loom-measure-words, .loom-measure")
    const more = scrolls && (scrolls.scrollHeight > scrolls.clientHeight + 1 || scrolls.scrollWidth > scrolls.clientWidth + 1)
    if (event.ctrlKey || !more) toCanvas(event)
    else event.stopPropagation()
  }
}

/** Neither renderer shows the picture below the node; on the canvas it would be there for `imgs`. */
function withoutPicture(node) {
  node.hideOutputImages = true
  Object.defineProperty(node, "imgs", { get: () => undefined, set: () => {}, configurable: true })
}

/** What is selected is copied, not the node; keys that press or scroll do not move it. */
function keep(event) {
  const ours = ["ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End", " ", "Enter"].includes(event.key)
  if (ours || (event.type === "copy" && !getSelection().isCollapsed)) event.stopPropagation()
}

/** The front end keeps these for good, with all that their functions can see: that is to be no node. */
function options(shape) {
  return {
    serialize: false, hideOnZoom: false, margin: MARGIN, getMinHeight: () => shape.height,
    getValue: () => "", setValue: () => {},
  }
}
