// What a merge or a cut that was made would be with the settings that the node has now: the server is asked, which has
// the rule and what it takes.

import { api } from "../../../../scripts/api.js"
import { isLinked } from "../page/nodes.js"
import { factorsOf } from "./strengths.js"
import { word } from "../page/words.js"

const WAIT = 120 // ms after the last change
const LIMITS = ["rank", "energy", "size_mb", "ratio", "share", "conv_rank"] // of which a node has some

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
    this.last = JSON.stringify([live?.asked, live?.parts?.map(() => [1, 1]) ?? [[1, 1]]])
  }

  /** After a change of anything. */
  look() {
    if (!this.live?.key) return
    const now = Object.fromEntries(Object.entries(this.live.asked).map(([name, was]) => [name, this.value(name) ?? was]))
    const factors = this.factors(now)
    const text = JSON.stringify([now, factors])
    if (text === this.last) return
    this.last = text
    clearTimeout(this.due)
    this.due = setTimeout(() => this.ask(now, factors, text), WAIT)
  }

  /** The strengths as multiples of those of the run; null when the server cannot know them. */
  factors(now) {
    const { asked, parts } = this.live
    if (parts) return factorsOf(this.node, parts, now)
    const both = ["strength", "text_strength"].map((name) => (now[name] === asked[name] ? 1 : now[name] / asked[name]))
    return both.every(Number.isFinite) ? [both] : null
  }

  /** Undefined for what comes through a link. */
  value(name) {
    return isLinked(this.node, name) ? undefined : this.node.widgets.find((widget) => widget.name === name)?.value
  }

  async ask(now, factors, text) {
    const { key, asked } = this.live
    if (!factors) return this.show({ problem: word("Size and error at these strengths are known after a run.") })
    const same = factors.flat().every((factor) => factor === 1)
    const own = LIMITS.filter((name) => name in asked)
    if (same && own.every((name) => now[name] === asked[name])) return this.show(null)
    const limits = Object.fromEntries(own.map((name) => [name, now[name]]))
    const query = new URLSearchParams({ key, ...limits, factors: factors.map((pair) => pair.join(":")).join() })
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
    return { problem: word("ComfyUI does not answer: size and error at these settings are not known.") }
  }
}
