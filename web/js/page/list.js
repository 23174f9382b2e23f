// A list box of many things as high as one another, of which only those in sight are elements.

import { element } from "./dom.js"
import { whenResized } from "./resize.js"

const ID = "loom-listbox"
const BEYOND = 4 // things above and below those in sight

export class List {
  /**
   * label: its name. height: of a thing in px. make: makes its element. act: called with the key or "click", the thing
   * and the event; true when it has done something with it. A thing has an `id` of its own.
   */
  constructor({ label, height, make, act }) {
    Object.assign(this, { height, make, act })
    this.things = []
    this.shown = new Map() // elements by the id of their thing
    this.active = null // the id of the thing that the keys are for
    this.room = element("div", { className: "loom-listbox-room", role: "presentation" })
    const about = { className: "loom-listbox", role: "listbox", tabIndex: 0, "aria-label": label }
    this.element = element("div", about, this.room)
    this.element.addEventListener("scroll", () => this.draw())
    this.element.addEventListener("keydown", (event) => this.key(event))
    this.element.addEventListener("click", (event) => this.click(event))
    this.element.addEventListener("focus", () => this.active ?? this.activate(this.things[0]))
    whenResized(this.element, this, (list) => list.draw())
  }

  /** Shows these things; with `anew`, of those that are shown already, too, all elements are made again. */
  show(things, anew = true) {
    this.things = things
    if (anew) this.clear()
    if (!things.some(({ id }) => id === this.active)) this.active = null
    this.room.style.height = `${things.length * this.height}px`
    this.draw()
  }

  clear() {
    for (const made of this.shown.values()) made.remove()
    this.shown.clear()
  }

  draw() {
    const { scrollTop, clientHeight } = this.element
    const first = Math.max(0, Math.floor(scrollTop / this.height) - BEYOND)
    const inSight = this.things.slice(first, Math.ceil((scrollTop + clientHeight) / this.height) + BEYOND)
    const wanted = new Set(inSight.map(({ id }) => id))
    for (const [id, made] of this.shown) {
      if (wanted.has(id)) continue
      made.remove()
      this.shown.delete(id)
    }
    inSight.forEach((thing, at) => this.place(thing, first + at))
    this.mark()
  }

  place(thing, at) {
    let made = this.shown.get(thing.id)
    if (!made) {
      made = this.make(thing)
      made.setAttribute("role", "option")
      made.id = `${ID}-${thing.id}`
      made.dataset.id = thing.id
      this.shown.set(thing.id, made)
      this.room.append(made)
    }
    made.style.transform = `translateY(${at * this.height}px)`
    made.setAttribute("aria-posinset", at + 1)
    made.setAttribute("aria-setsize", this.things.length)
  }

  /** Shows one thing as it is now. */
  redraw(thing) {
    const at = this.things.findIndex(({ id }) => id === thing.id)
    if (at < 0) return
    this.things[at] = thing
    this.shown.get(thing.id)?.remove()
    if (this.shown.delete(thing.id)) this.draw()
  }

  mark() {
    for (const [id, made] of this.shown) made.classList.toggle("loom-listbox-active", id === this.active)
    const active = this.shown.get(this.active)
    if (active) this.element.setAttribute("aria-activedescendant", active.id)
    else this.element.removeAttribute("aria-activedescendant")
  }

  activate(thing) {
    if (!thing) return
    this.active = thing.id
    const top = this.things.indexOf(thing) * this.height
    const { scrollTop, clientHeight } = this.element
    if (top < scrollTop) this.element.scrollTop = top
    else if (top + this.height > scrollTop + clientHeight) this.element.scrollTop = top + this.height - clientHeight
    this.draw()
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return
    const at = this.things.findIndex(({ id }) => id === this.active)
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.height))
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key]
    if (by !== undefined) this.activate(this.things[Math.max(0, Math.min(this.things.length - 1, at + by))])
    else if (at < 0 || !this.act(event.key, this.things[at], event)) return
    event.preventDefault()
    event.stopPropagation()
  }

  click(event) {
    const id = event.target.closest("[role=option]")?.dataset.id
    const thing = this.things.find((each) => each.id === id)
    if (!thing) return
    this.activate(thing)
    this.act("click", thing, event)
  }
}
