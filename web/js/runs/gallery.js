// The previews of a run: a row for each prompt, a column for each step, one slider for all rows, and two pictures that
// can be pinned and wiped over each other.

import { element } from "../page/dom.js"
import { whenResized } from "../page/resize.js"
import * as store from "./store.js"
import { Wipe } from "./wipe.js"
import { phrase, word } from "../page/words.js"

const SMALLEST = 72 // px of a picture
const LARGEST = 200
const HEAD = 24 // px of the steps above the pictures
const GAP = 6
const CHIP = 20 // px above a prompt
const LINE = 16
const STICKY = ["loom-gallery-words", "loom-gallery-base", "loom-gallery-now"]
const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
const PIN = phrase("Click two pictures to wipe one over the other.")
const WIPE = phrase("Drag the line, or move it with the arrow keys. Escape closes.")
const NOTHING = phrase("This run has no previews. Connect Training Previews to Train LoRA to see pictures of its steps here.")

export class Gallery {
  /** moved: called with the step that the slider is at, and whether a person moved it there. */
  constructor(moved) {
    this.moved = moved
    this.pins = []
    this.rows = []
    this.stops = []
    this.slider = element("input", { type: "range", className: "loom-slider", min: 0, step: 1, "aria-label": word("Step") })
    this.where = element("output", { className: "loom-slider-step" })
    this.grid = element("div", { className: "loom-gallery", role: "grid", "aria-label": word("Previews") })
    this.hint = element("div", { className: "loom-gallery-hint", role: "status" })
    this.wipe = new Wipe(() => this.unpin())
    this.scrub = element("div", { className: "loom-scrub" }, this.slider, this.where)
    this.element = element("section", { className: "loom-gallery-pane", "aria-label": word("Pictures") },
      this.scrub, this.grid, this.wipe.element, this.hint)
    this.slider.addEventListener("input", () => this.to(this.stops[this.slider.value], true))
    this.slider.addEventListener("keydown", (event) => event.stopPropagation())
    this.grid.addEventListener("click", (event) => this.click(event))
    this.grid.addEventListener("keydown", (event) => this.key(event))
    whenResized(this.grid, this, (gallery, width, height) => gallery.fit(height))
  }

  /** Shows the pictures of a run, at the slider's step if it is still there, else at the last. */
  show(run) {
    const other = run.id !== this.run?.id
    this.run = { ...run, previews: run.previews.filter((step) => !run.unlike?.includes(step)) }
    const stops = [...new Set([...this.run.previews, ...run.saved])].sort((a, b) => a - b)
    const rows = rowsOf(this.run)
    const laid = JSON.stringify([run.id, stops, rows])
    if (laid === this.laid) return
    const atEnd = other || this.step === undefined || this.step === this.stops[this.stops.length - 1]
    Object.assign(this, { laid, stops, rows })
    this.slider.max = Math.max(0, stops.length - 1)
    this.scrub.hidden = stops.length < 2
    if (other) this.unpin()
    this.lay()
    const wanted = atEnd ? run.best : this.step
    this.to(stops.includes(wanted) ? wanted : stops[stops.length - 1])
  }

  lay() {
    const { previews } = this.run
    this.element.classList.toggle("loom-nothing", !this.rows.length)
    this.mark()
    if (!this.rows.length) return this.grid.replaceChildren()
    const heads = ["", word("base model"), "", ...previews.map(String)].map((text, at) => cell(at, "columnheader", text))
    const head = element("div", { className: "loom-gallery-row loom-gallery-head", role: "row" }, ...heads)
    this.nowHead = head.children[2]
    this.heads = new Map(previews.map((step, at) => [step, head.children[at + 3]]))
    const focused = this.grid.contains(document.activeElement) && document.activeElement.dataset
    this.grid.replaceChildren(head, ...this.rows.map((row) => this.row(row)))
    this.fit(this.grid.clientHeight)
    this.mark()
    if (focused) this.shots().find(({ dataset: { step, n } }) => step === focused.step && n === focused.n)?.focus()
  }

  row(row) {
    const { previews } = this.run
    row.now = cell(2, "gridcell")
    const words = cell(0, "rowheader",
      ...(row.kind ? [element("span", { className: "loom-runs-chip" }, row.kind)] : []),
      element("span", { className: "loom-gallery-prompt", title: row.prompt }, row.prompt || word("no words")))
    const base = cell(1, "gridcell", ...(row.base === undefined ? [] : [this.picture(row, previews[0], row.base)]))
    const steps = previews.map((step) => cell(3, "gridcell", this.picture(row, step, row.lora)))
    return element("div", { className: "loom-gallery-row", role: "row" }, words, base, row.now, ...steps)
  }

  picture(row, step, n) {
    const name = n === row.base ? word("base model") : word("step {step}", { step })
    const src = store.previewUrl(this.run.id, step, n, 256)
    const told = { "aria-label": `${name}, ${row.prompt}`, "aria-pressed": "false" }
    const made = element("button", { type: "button", className: "loom-runs-shot", tabIndex: -1, ...told },
      element("img", { alt: "", loading: "lazy", draggable: false, src }))
    Object.assign(made.dataset, { step, n, name })
    return made
  }

  /** Puts the slider and every row at a step. */
  to(step, byHand = false) {
    if (step === undefined) return
    this.step = step
    this.slider.value = Math.max(0, this.stops.indexOf(step))
    this.where.textContent = word("step {step}", { step })
    this.slider.setAttribute("aria-valuetext", this.where.textContent)
    this.moved(step, byHand)
    const shown = shownAt(this.run.previews, step)
    if (!this.rows.length) return
    this.nowHead.textContent = word("step {step}", { step: shown })
    for (const row of this.rows) row.now.replaceChildren(this.picture(row, shown, row.lora))
    for (const [each, head] of this.heads) head.classList.toggle("loom-gallery-current", each === shown)
    if (byHand) this.bring(this.heads.get(shown))
    this.mark()
  }

  /** Scrolls a column out from under those that stay. */
  bring(head) {
    const { scrollLeft, clientWidth } = this.grid
    const staying = this.nowHead.offsetLeft + this.nowHead.offsetWidth - scrollLeft
    const [left, right] = [head.offsetLeft - staying, head.offsetLeft + head.offsetWidth - clientWidth]
    if (left < scrollLeft) this.grid.scrollLeft = left
    else if (right > scrollLeft) this.grid.scrollLeft = right
  }

  /** Puts the slider at the step that is nearest. */
  near(step) {
    const nearest = [...this.stops].sort((a, b) => Math.abs(a - step) - Math.abs(b - step))[0]
    this.to(nearest, true)
  }

  /** Pictures as large as lets all rows be seen. */
  fit(height) {
    const side = (height - HEAD) / Math.max(1, this.rows.length) - GAP
    const fitting = Math.round(Math.max(SMALLEST, Math.min(LARGEST, side)))
    this.grid.style.setProperty("--side", `${fitting}px`)
    this.grid.style.setProperty("--lines", Math.floor((fitting - CHIP) / LINE))
  }

  // -- pins ----------------------------------------------------------------------------------------------------------

  click(event) {
    const shot = event.target.closest(".loom-runs-shot")
    if (shot) this.pin(shot)
  }

  pin(shot) {
    const { step, n, name } = shot.dataset
    const key = `${step} ${n}`
    const others = this.pins.filter((pin) => pin.key !== key)
    const src = store.previewUrl(this.run.id, step, n, 1024)
    const pin = { key, name, src, words: shot.getAttribute("aria-label") }
    this.pins = others.length < this.pins.length ? others : [...others, pin]
    this.mark()
    if (this.pins.length === 2) this.wipe.show(...this.pins)
  }

  unpin() {
    const open = this.pins.length === 2
    this.pins = []
    this.wipe.hide()
    this.mark()
    if (open) this.shots().find((shot) => shot.tabIndex === 0)?.focus()
  }

  /** Shows which pictures are pinned, and what can be done. */
  mark() {
    const shots = this.shots()
    for (const shot of shots) {
      const at = this.pins.findIndex(({ key }) => key === `${shot.dataset.step} ${shot.dataset.n}`)
      shot.setAttribute("aria-pressed", String(at >= 0))
      shot.dataset.pin = at < 0 ? "" : "AB"[at]
    }
    if (shots.length && !shots.some((shot) => shot.tabIndex === 0)) shots[0].tabIndex = 0
    const [first, second] = this.pins
    this.grid.hidden = !this.rows.length || Boolean(second)
    const hint = second ? word(WIPE) : first ? word("A is {picture}. Choose another picture for B.", { picture: first.words }) : word(PIN)
    this.hint.textContent = this.rows.length ? hint : word(NOTHING)
  }

  shots() {
    return [...this.grid.querySelectorAll(".loom-runs-shot")]
  }

  /** The arrow keys go from picture to picture. */
  key(event) {
    const lines = [...this.grid.querySelectorAll(".loom-gallery-row:not(.loom-gallery-head)")]
    const rows = lines.map((row) => [...row.querySelectorAll(".loom-runs-shot")])
    const y = rows.findIndex((row) => row.includes(event.target))
    if (event.key === "Escape" && this.pins.length) this.unpin()
    if (y < 0) return
    const x = rows[y].indexOf(event.target)
    const [dx, dy] = { ...WAYS, Home: [-x, 0], End: [rows[y].length - 1 - x, 0] }[event.key] ?? []
    if (dx === undefined) return
    event.preventDefault()
    event.stopPropagation()
    const next = rows[y + dy]?.[x + dx]
    if (!next) return
    event.target.tabIndex = -1
    next.tabIndex = 0
    next.focus()
  }
}

function cell(at, role, ...inside) {
  return element("div", { className: `loom-gallery-cell ${STICKY[at] ?? ""}`, role }, ...inside)
}

/** Each prompt with the numbers of its pictures by the base model and with the LoRA. */
function rowsOf({ previews, pictures = [], prompts = [] }) {
  if (!previews.length) return []
  if (!pictures.length) return [{ prompt: word("the whole sheet"), lora: 0 }] // of an older version
  const rows = []
  pictures.forEach(({ prompt, kind }, at) => {
    let row = rows[rows.length - 1]
    if (!row || row.prompt !== prompt || row[kind] !== undefined) rows.push((row = { prompt }))
    row[kind] = at
  })
  const pairs = prompts.filter((group) => group.length === 2)
  for (const row of rows) {
    if (pairs.some(([first]) => first === row.prompt)) row.kind = word("with trigger")
    else if (pairs.some(([, second]) => second === row.prompt)) row.kind = word("without")
  }
  return rows.filter((row) => row.lora !== undefined)
}

/** The last step with pictures that is not after this one, else the first. */
function shownAt(previews, step) {
  return previews.filter((each) => each <= step).pop() ?? previews[0]
}
