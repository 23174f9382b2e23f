// A list or grid of any length of which only what is in sight is on the page.

import { element } from "../page/dom.js"

const BEYOND = 3 // rows drawn above and below what is in sight
const PADDING = 6 // px, as in css/library.css
const ROW = 46
const CARD = { width: 132, height: 186 }
const REST = 90 // ms without scrolling, after which pictures are asked for

/** `draw(item, index, grid)` makes an option; `seen(element)` is called for each that stays in sight for a moment. */
export class VirtualList {
  constructor({ label, id, draw, seen }) {
    Object.assign(this, { id, draw, seen, items: [], grid: false, selected: -1, columns: 1, live: new Map() })
    this.span = element("div", { className: "loom-span", role: "presentation" })
    this.element = element("div", {
      className: "loom-options", id, role: "listbox", tabIndex: 0, "aria-label": label,
    }, this.span)
    this.element.addEventListener("scroll", () => this.render(), { passive: true })
    this.span.addEventListener("mousedown", (event) => event.preventDefault()) // what is drawn anew is to have no focus
    this.watch = new ResizeObserver(() => this.measure())
    this.watch.observe(this.element)
  }

  stop() {
    this.watch.disconnect()
    clearTimeout(this.timer)
  }

  /** Lists other items, or the same ones told anew. */
  show(items, grid) {
    Object.assign(this, { items, grid })
    this.element.classList.toggle("loom-grid", grid)
    this.clear()
    this.measure()
  }

  /** How many items a page has; in a grid whole rows. */
  get page() {
    return this.columns * Math.max(1, Math.floor(this.element.clientHeight / this.height) - 1)
  }

  get height() {
    return this.grid ? CARD.height : ROW
  }

  optionId(index) {
    return index < 0 ? "" : `${this.id}-${index}`
  }

  select(index) {
    this.live.get(this.selected)?.setAttribute("aria-selected", "false")
    this.selected = index
    this.live.get(index)?.setAttribute("aria-selected", "true")
    this.element.setAttribute("aria-activedescendant", this.optionId(index))
    this.render()
  }

  /** Scrolls as little as brings the selected one into sight. */
  reveal() {
    if (this.selected < 0) return
    const top = Math.floor(this.selected / this.columns) * this.height
    const { scrollTop, clientHeight } = this.element
    const lowest = top + this.height + 2 * PADDING - clientHeight
    this.element.scrollTop = Math.min(Math.max(scrollTop, lowest), top)
    this.render()
  }

  redraw(index) {
    this.live.get(index)?.remove()
    this.live.delete(index)
    this.render()
  }

  measure() {
    const width = this.element.clientWidth - 2 * PADDING
    const columns = this.grid ? Math.max(1, Math.floor(width / CARD.width)) : 1
    if (columns !== this.columns || width !== this.width) this.clear()
    Object.assign(this, { columns, width })
    this.span.style.height = `${Math.ceil(this.items.length / columns) * this.height}px`
    this.render()
  }

  clear() {
    this.span.replaceChildren()
    this.live.clear()
  }

  render() {
    if (this.width <= 0) return
    const { scrollTop, clientHeight } = this.element
    const first = Math.max(0, Math.floor(scrollTop / this.height) - BEYOND) * this.columns
    const last = (Math.ceil((scrollTop + clientHeight) / this.height) + BEYOND) * this.columns
    const wanted = (index) => (index >= first && index < last) || index === this.selected
    for (const [index, made] of this.live) if (!wanted(index)) this.drop(index, made)
    for (let index = first; index < Math.min(last, this.items.length); index++) this.put(index)
    if (this.selected >= 0) this.put(this.selected) // it is what the search names as active, wherever it is
    clearTimeout(this.timer)
    this.timer = setTimeout(() => this.live.forEach(this.seen), REST)
  }

  drop(index, made) {
    made.querySelector("img")?.removeAttribute("src") // what is out of sight is not waited for
    made.remove()
    this.live.delete(index)
  }

  put(index) {
    if (this.live.has(index) || !(index in this.items)) return
    const made = this.draw(this.items[index], index, this.grid)
    made.id = this.optionId(index)
    made.setAttribute("aria-setsize", this.items.length)
    made.setAttribute("aria-posinset", index + 1)
    made.setAttribute("aria-selected", String(index === this.selected))
    const width = this.width / this.columns
    Object.assign(made.style, {
      width: `${width}px`, height: `${this.height}px`,
      transform: `translate(${(index % this.columns) * width}px, ${Math.floor(index / this.columns) * this.height}px)`,
    })
    this.live.set(index, made)
    this.span.append(made)
  }
}
