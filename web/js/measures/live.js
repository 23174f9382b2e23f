// What a merge or a cut that was made would be with the settings that the node has now: the server is asked, which has
// the rule and what it takes.

import { api } from "../../../../scripts/api.js"

const WAIT = 120 // ms after the last change
const LIMITS = ["rank", "energy", "size_mb"]
const FACTORS = { strength: "factor", text_strength: "text_factor" }

/** Keeps what is shown of one node in line with its inputs. `show` is called with an answer, or with null when the
 * inputs are those of the run. */
export class Live {
  constructor(node, show) {
    this.node = node
    this.show = show
  }

  /** After a run, with what the server said of it. */
  take(live) {
    this.live = live
    this.last = JSON.stringify(live?.asked)
  }

  /** After a change of anything. */
  look() {
    if (!this.live?.key) return
    const now = Object.fromEntries(Object.entries(this.live.asked).map(([name, was]) => [name, this.value(name) ?? was]))
    const text = JSON.stringify(now)
    if (text === this.last) return
    this.last = text
    clearTimeout(this.due)
    this.due = setTimeout(() => this.ask(now, text), WAIT)
  }

  /** Undefined for what comes through a link. */
  value(name) {
    const linked = this.node.inputs?.some((input) => input.name === name && input.link != null)
    return linked ? undefined : this.node.widgets.find((widget) => widget.name === name)?.value
  }

  async ask(now, text) {
    const { key, asked } = this.live
    if (Object.entries(now).every(([name, value]) => value === asked[name])) return this.show(null)
    const query = new URLSearchParams({ key, ...Object.fromEntries(LIMITS.map((name) => [name, now[name]])) })
    for (const [name, factor] of Object.entries(FACTORS)) {
      if (asked[name] === undefined) continue
      if (!asked[name] && now[name]) return this.show({ problem: `The last run was made at ${name} 0: run again to see size and error.` })
      query.set(factor, asked[name] ? now[name] / asked[name] : 1)
    }
    const answer = await this.fetched(query)
    if (text === this.last && this.live.key === key) this.show(answer)
  }

  async fetched(query) {
    try {
      const answer = await api.fetchApi(`/lora_loom/outlook?${query}`)
      if (answer.ok) return await answer.json()
    } catch (error) {
      if (!(error instanceof TypeError || error instanceof SyntaxError)) throw error
    }
    return { problem: "ComfyUI does not answer: size and error at these settings are not known." }
  }
}
