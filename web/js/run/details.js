// What is told of one run beside its place in the list, asked for again when it has more to tell.

import { details } from "../runs/store.js"

export class Details {
  /** then: called when there is something new. */
  constructor(id, then) {
    this.id = id
    this.then = then
    this.found = null
  }

  async follow(run) {
    const key = JSON.stringify([run.state, run.previews, run.changed && run.state !== "running" ? run.changed : 0])
    if (key === this.key) return
    this.key = key
    try {
      const found = await details(this.id)
      if (key !== this.key) return
      this.found = found
      this.then()
    } catch {
      if (key === this.key) this.key = undefined // the server is away, or the run is gone: the list will tell
    }
  }
}
