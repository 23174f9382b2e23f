// One run in the bottom panel: its curve with others laid over it, its previews, and what can be done with it.

import { app } from "../../../../scripts/app.js"
import { element } from "../page/dom.js"
import { short } from "../page/scale.js"
import { pause, remove, rerun, trainOn, useStep } from "./actions.js"
import { choice, choose, onChoice } from "./choice.js"
import { Facts } from "./facts.js"
import { Gallery } from "./gallery.js"
import * as store from "./store.js"
import { bytes, clock, left, percent, standing } from "./words.js"
import { word } from "../page/words.js"

export const PANEL = "lora-loom-run"

/** Opens the panel with a run. */
export function openRun(id) {
  choose(id)
  openPanel()
}

/** Opens the panel; one that is open stays open. */
export function openPanel() {
  const panel = app.extensionManager.bottomPanel
  const open = panel?.bottomPanelVisible && panel.activeBottomPanelTabId === PANEL
  if (!open) panel?.toggleBottomPanelTab?.(PANEL)
}

export class RunPanel {
  constructor() {
    this.name = element("h2", { className: "loom-panel-name" })
    this.state = element("span", { className: "loom-panel-state", role: "status" })
    this.facts = element("span", { className: "loom-panel-facts" })
    this.left = new Facts((step) => this.gallery.near(step))
    this.gallery = new Gallery((step, byHand) => this.moved(step, byHand))
    this.use = button("", () => useStep(this.gallery.run, this.gallery.step), "loom-runs-button loom-runs-main")
    this.again = button(word("Rerun"), () => rerun(this.run))
    this.more = button(word("Continue with more steps"), () => trainOn(this.run))
    this.gone = button(word("Delete"), () => remove(this.run))
    this.stop = button(word("Pause and keep"), () => this.pause())
    this.content = element("div", { className: "loom-panel-content" },
      element("header", { className: "loom-panel-head" }, this.name, this.state, this.facts),
      element("div", { className: "loom-panel-panes" }, this.left.element, this.gallery.element),
      element("footer", { className: "loom-panel-foot" },
        this.use, this.stop, element("span", { className: "loom-grow" }), this.again, this.more, this.gone))
    this.empty = element("div", { className: "loom-panel-empty" })
    this.element = element("div", { className: "loom loom-panel" }, this.content, this.empty)
    this.element.addEventListener("copy", (event) => getSelection().isCollapsed || event.stopPropagation())
  }

  begin() {
    this.ends = [store.listen(() => this.show()), onChoice(() => this.show())]
    this.show()
    store.refresh()
  }

  end() {
    for (const stop of this.ends) stop()
    this.ends = []
  }

  /** Shows the run that is chosen, else what runs, else the newest. */
  show() {
    const begun = store.runs().filter(({ id }) => id && !choice.leaving.has(id))
    const known = new Map(begun.map((run) => [run.id, run]))
    const run = known.get(choice.open) ?? begun.find(({ state }) => state === "running") ?? begun[0]
    this.content.hidden = !run
    this.empty.textContent = run ? "" : word("No run to show yet. Train a LoRA, or choose a run in the list of LoRA runs.")
    if (!run) return
    if (run.id !== choice.open) return choose(run.id)
    this.run = run
    this.head(run)
    this.left.show(run, choice.over.map((id) => known.get(id)).filter(Boolean))
    this.detail(run)
  }

  head(run) {
    this.name.textContent = this.name.title = run.name
    this.state.textContent = standing(run)
    const loss = Number.isFinite(run.loss) ? word("loss {loss}", { loss: short(run.loss) }) : ""
    const best = Number.isInteger(run.best) && run.best !== run.step ? word("best by validation: {best}", run) : ""
    const time = run.state === "running" ? [`${percent(run)} %`, left(run)] : [word("{time} of training", { time: clock(run.seconds) })]
    const facts = [loss, ...time, best, run.family, run.size && bytes(run.size)]
    this.facts.textContent = facts.filter(Boolean).join(" \u00b7 ")
    const running = run.state === "running"
    this.stop.hidden = !running
    this.stop.disabled = this.pausing === run.id
    if (!running && this.stop.disabled) this.pausing = null
    this.gone.hidden = this.more.hidden = running
    this.again.disabled = this.more.disabled = !run.workflow
    this.again.title = this.more.title = run.workflow ? "" : word("This run was queued without a workflow.")
    this.moved(this.gallery.step)
  }

  /** What only the run itself tells, asked for when it may have changed. */
  async detail(run) {
    const key = [run.id, run.state, run.previews, run.saved, run.previewed, run.changed].join(" ")
    if (key === this.detailed) return
    this.detailed = key
    const found = await store.details(run.id).catch(() => null) // not there any more: the list says so, too
    if (this.detailed !== key) return
    if (!found) this.detailed = undefined
    if (!found || this.run?.id !== found.id) return
    this.left.tell(found)
    this.gallery.show(found)
    this.moved(this.gallery.step)
  }

  moved(step, byHand) {
    if (byHand) this.left.at(step)
    const saved = this.gallery.run?.saved ?? []
    const kept = saved.includes(step)
    this.use.hidden = step === undefined || this.gallery.run?.id !== this.run?.id
    this.use.disabled = !kept
    this.use.textContent = kept ? word("Use step {step}", { step }) : word("Step {step} was not kept", { step })
    const others = saved.length ? word("LoRAs are kept of {steps}.", { steps: saved.join(", ") }) : word("No LoRA is kept of any step.")
    this.use.title = kept ? word("Copies it into the loras folder and puts it on Load LoRA Stack") : others
  }

  async pause() {
    const { run } = this
    this.pausing = run.id
    this.stop.disabled = true
    if (await pause(run) !== undefined) return
    this.pausing = null
    this.stop.disabled = false
  }
}

function button(text, act, className = "loom-runs-button") {
  const made = element("button", { type: "button", className }, text)
  made.addEventListener("click", act)
  return made
}
