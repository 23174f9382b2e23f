// The list of the runs, in a tab of the side bar: what runs, what waits, and what has been.

import { element } from "../page/dom.js"
import { List } from "../page/list.js"
import { short } from "../page/scale.js"
import { remove } from "./actions.js"
import { Card } from "./card.js"
import { choice, choose, onChoice, toggle } from "./choice.js"
import * as store from "./store.js"
import { onQueue, waiting } from "./waiting.js"
import { ago, differences, standing } from "./words.js"
import { spoken, word } from "../page/words.js"

const HEIGHT = 76 // px of a run, as in css/runs.css
const THUMB = 64 // px

export class Sidebar {
  /** open: shows the panel. */
  constructor(open) {
    this.open = open
    this.cards = new Map()
    this.queued = []
    this.search = element("input", {
      type: "search", className: "loom-runs-search", placeholder: word("Search names and settings"), autocomplete: "off",
      spellcheck: false, "aria-label": word("Search runs"),
    })
    this.running = element("div", { className: "loom-runs-running" })
    this.waits = element("ol", { className: "loom-runs-waiting", "aria-label": word("Waiting in the queue") })
    this.count = element("div", { className: "loom-runs-title", role: "status" })
    this.none = element("div", { className: "loom-runs-none" })
    this.list = new List({
      label: word("Runs"), height: HEIGHT, make: option, act: (key, run, event) => this.act(key, run, event),
    })
    this.list.element.setAttribute("aria-multiselectable", "true")
    this.element = element("div", { className: "loom loom-runs" },
      element("h2", { className: "loom-runs-head" }, word("LoRA runs")),
      element("div", { className: "loom-runs-find" }, this.search),
      this.running, this.waits, this.count, this.none, this.list.element)
    this.search.addEventListener("input", () => this.filter())
    this.search.addEventListener("keydown", (event) => this.down(event))
  }

  /** Begins to follow what the server tells. */
  begin() {
    this.ends = [store.listen(() => this.show()), onChoice(() => this.chosen()), onQueue(() => this.ask())]
    this.show()
    this.ask()
    store.refresh()
  }

  end() {
    for (const stop of this.ends) stop()
    this.ends = []
  }

  show() {
    this.showRunning(store.runs().filter((run) => run.state === "running"))
    this.filter()
  }

  showRunning(runs) {
    const places = new Set(runs.map(place))
    for (const [at, card] of this.cards) {
      if (places.has(at)) continue
      card.element.remove()
      this.cards.delete(at)
    }
    for (const run of runs) {
      const known = this.cards.get(place(run))
      if (known) known.show(run)
      else this.add(new Card(run, this.open))
    }
  }

  add(card) {
    this.cards.set(place(card.run), card)
    this.running.append(card.element)
  }

  async ask() {
    const turn = (this.turn = {})
    const queued = await waiting()
    if (turn !== this.turn) return
    this.queued = queued
    this.waits.replaceChildren(...this.queued.map(({ name, steps }) => element("li", { className: "loom-wait" },
      element("span", { className: "loom-run-name" }, name),
      element("span", { className: "loom-run-more" }, steps ? word("waits, {steps} steps", { steps }) : word("waits")))))
    this.filter()
  }

  // -- those that have been ------------------------------------------------------------------------------------------

  filter() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean)
    const past = store.runs().filter(({ id, state }) => id && state !== "running" && !choice.leaving.has(id))
    const found = past.filter((run) => words.every((each) => searched(run).includes(each)))
    const [some, all] = [found.length, past.length]
    const many = some === all ? all : word("{some} of {all}", { some, all })
    this.count.textContent = all ? word("Earlier runs, {count}", { count: many }) : ""
    this.none.textContent = nothing(past, found, this.cards.size + this.queued.length)
    this.list.element.hidden = !found.length
    const now = found.map(({ id, state, changed, step }) => [id, state, changed, step].join(" ")).join("\n")
    if (now !== this.found) this.list.show(found)
    this.found = now
  }

  /** Shows which is open, which are laid over it, and not which are being deleted. */
  chosen() {
    this.filter()
    for (const [id, made] of this.list.shown) {
      for (const [name, value] of Object.entries(marks(id))) made.setAttribute(name, value)
    }
  }

  act(key, run, event) {
    const compares = key === " " || (key === "click" && event.target.closest(".loom-check"))
    if (compares) toggle(run.id)
    else if (key === "click" || key === "Enter") choose(run.id)
    else if (key === "Delete") remove(run)
    else return false
    if (key !== "Delete") this.open()
    return true
  }

  down(event) {
    event.stopPropagation()
    if (event.key !== "ArrowDown" || this.list.element.hidden) return
    event.preventDefault()
    this.list.element.focus()
  }
}

function marks(id) {
  return { "aria-selected": String(id === choice.open), "aria-checked": String(choice.over.includes(id)) }
}

/** Where a run that goes on is made: one that begins has no id yet. */
function place(run) {
  return `${run.prompt_id} ${run.node}`
}

/** A run that has been, in the list. */
function option(run) {
  const told = run.fault ? [spoken(run.fault)] : differences(run)
  const loss = Number.isFinite(run.loss) ? short(run.loss) : ""
  return element("div", { className: "loom-run", ...marks(run.id) },
    thumb(run),
    element("div", { className: "loom-run-words" },
      element("div", { className: "loom-run-line" },
        element("span", { className: "loom-run-name", title: run.name }, run.name),
        element("span", { className: "loom-run-loss" }, loss)),
      element("div", { className: "loom-run-line loom-run-more" },
        element("span", { className: "loom-run-state" }, standing(run)),
        element("span", { className: "loom-run-when" }, ago(run.changed))),
      element("div", { className: "loom-run-more loom-run-differs", title: told.join("\n") }, told.join(", "))),
    element("span", { className: "loom-check", title: word("Lay its curve over the open one"), "aria-hidden": "true" }))
}

/** The newest picture with the LoRA, or the model's family. */
function thumb(run) {
  const step = run.previews?.[run.previews.length - 1]
  if (step === undefined) return element("span", { className: "loom-runs-thumb" }, run.family ?? "")
  const src = store.previewUrl(run.id, step, run.prompts ? 1 : 0, 2 * THUMB) // after the base model's, else the whole
  return element("img", { className: "loom-runs-thumb", alt: "", loading: "lazy", src })
}

function searched(run) {
  return [run.name, run.id, run.family, run.state, ...differences(run)].filter(Boolean).join("\n").toLowerCase()
}

function nothing(past, found, others) {
  if (found.length) return ""
  if (past.length) return word("No run has these words.")
  return others ? "" : word("No runs yet. What Train LoRA makes is listed here, with its curve, its previews and its LoRAs.")
}
