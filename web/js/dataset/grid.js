// Thousands of cards of one size, of which only those in sight are there.

import { element } from "../page/dom.js"
import { word } from "../page/words.js"
import { Card } from "./card.js"

const GAP = 12 // px
const BELOW = 156 // px of a card below its picture, as in css/dataset.css
const BEYOND = 1 // screens above and below the one in sight

export class Grid {
  constructor(page, inSight) {
    this.page = page
    this.inSight = inSight
    this.cards = new Map()
    this.index = new Map()
    this.pictures = []
    this.sheet = element("div", { className: "loom-set-sheet" })
    this.element = element("div", { className: "loom-set-cards", role: "region", "aria-label": word("Pictures") }, this.sheet)
    this.element.addEventListener("scroll", () => this.soon(), { passive: true })
    this.observer = new ResizeObserver(() => this.soon())
  }

  start() {
    this.observer.observe(this.element)
  }

  stop() {
    this.observer.disconnect()
  }

  show(pictures) {
    this.pictures = pictures
    this.index = new Map(pictures.map(({ name }, at) => [name, at]))
    if (!this.index.has(this.current)) this.current = pictures[0]?.name
    this.layout()
  }

  soon() {
    this.due ??= requestAnimationFrame(() => {
      this.due = undefined
      this.layout()
    })
  }

  layout() {
    const width = this.element.clientWidth - 2 * GAP
    if (width <= 0) return
    this.columns = Math.max(1, Math.floor((width + GAP) / (this.page.wanted + GAP)))
    const side = Math.floor((width - GAP * (this.columns - 1)) / this.columns)
    this.page.side = side
    this.row = side + BELOW + GAP
    this.sheet.style.height = `${Math.ceil(this.pictures.length / this.columns) * this.row + GAP}px`
    this.sheet.style.setProperty("--loom-side", `${side}px`)
    this.fill(side)
  }

  fill(side) {
    const { scrollTop, clientHeight } = this.element
    const first = Math.max(0, Math.floor((scrollTop - BEYOND * clientHeight) / this.row)) * this.columns
    const last = Math.ceil((scrollTop + (1 + BEYOND) * clientHeight) / this.row) * this.columns
    const shown = this.pictures.slice(first, last)
    const wanted = new Set(shown.map(({ name }) => name))
    for (const [name, card] of this.cards) {
      const busy = this.index.has(name) && card.element.contains(document.activeElement)
      if (!wanted.has(name) && !busy) this.drop(name, card)
    }
    shown.forEach((picture, at) => this.place(picture, first + at, side))
    this.inSight(shown.map(({ name }) => name))
  }

  /** In the order of the pictures, so that Tab goes through them. */
  place(picture, at, side) {
    const { name } = picture
    let card = this.cards.get(name)
    if (!card) {
      card = new Card(picture, this.page)
      this.cards.set(name, card)
      const after = [...this.sheet.children].find((each) => Number(each.dataset.at) > at)
      this.sheet.insertBefore(card.element, after ?? null)
    }
    card.element.dataset.at = String(at)
    const left = GAP + (at % this.columns) * (side + GAP)
    card.element.style.transform = `translate(${left}px, ${GAP + Math.floor(at / this.columns) * this.row}px)`
    card.show(picture, this.page.stateOf(name, name === this.current))
  }

  drop(name, card) {
    card.element.remove()
    this.cards.delete(name)
  }

  /** Brings a picture in sight, and the keyboard to it or to its caption. */
  focus(name, caption = false) {
    const at = this.index.get(name)
    if (at === undefined) return
    this.current = name
    const top = Math.floor(at / this.columns) * this.row
    const { scrollTop, clientHeight } = this.element
    if (top < scrollTop || top + this.row > scrollTop + clientHeight) {
      this.element.scrollTop = top < scrollTop ? top : Math.min(top, top + this.row - clientHeight + GAP)
    }
    this.layout()
    const card = this.cards.get(name)
    if (caption) card?.text.focus()
    else card?.shot.focus()
  }

  /** The name of the picture so many places further on. */
  beside(name, by) {
    const at = this.index.get(name ?? this.current) ?? 0
    return this.pictures[Math.max(0, Math.min(this.pictures.length - 1, at + by))]?.name
  }
}
