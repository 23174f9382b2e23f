// The numbers of one run, asked for as it goes on.

import * as store from "./store.js"
import { word } from "../page/words.js"

export class Curve {
  /** then: called when there are more numbers. */
  constructor(id, then) {
    this.id = id
    this.then = then
    this.clear()
  }

  clear() {
    this.next = this.heard = 0
    this.log = { steps: [], loss: [], raw: [], learning_rate: [], validation: [], events: [] }
  }

  /** Asks for what is new, when the run is not as it was. */
  async follow(run) {
    this.run = run
    const now = `${run.state} ${run.step} ${run.changed}`
    if (this.asking || now === this.asked) return
    if (run.state === "running" && run.step < this.heard) this.clear() // it went back
    this.heard = run.step
    this.asking = true
    this.asked = now
    try {
      do {
        if (!await this.more()) break
        this.then()
      } while (this.next <= this.run.step)
    } catch {
      this.asked = undefined // it is not there any more, and goes from the list as well, or the server is away
      return
    } finally {
      this.asking = false
    }
    this.follow(this.run) // as it is by now
  }

  /** False when there is no more. */
  async more() {
    const { next, validation, ...found } = await store.log(this.id, this.next)
    const [further, marks] = [next > this.next, validation.length !== this.log.validation.length]
    this.next = next
    this.log.validation = validation // all of them each time
    for (const key of ["steps", "loss", "raw", "learning_rate", "events"]) this.log[key].push(...found[key])
    return further || marks
  }

  /** The loss, with the unsmoothed one beneath it. */
  drawn(name, raw = true) {
    const { steps, loss } = this.log
    const beneath = raw ? [{ name: word("each step"), steps, values: this.log.raw, faint: true }] : []
    return [...beneath, { name, steps, values: loss }]
  }
}
