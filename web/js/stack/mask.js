// The part of the picture that a row is on in: inside or outside of one of the masks that are connected to the node.

import { element } from "../page/dom.js"
import { word } from "../page/words.js"

export class Mask {
  constructor(item, done, connected) {
    Object.assign(this, { item, connected })
    this.choice = element("select", { className: "loom-row-preset", "aria-label": word("Part of the picture") })
    this.choice.addEventListener("change", () => {
      item.mask = Number(this.choice.value)
      done()
    })
    this.said = element("span", { className: "loom-row-said" })
    this.element = element("div", { className: "loom-row-part", role: "group", "aria-label": word("Part of the picture") },
      element("div", { className: "loom-row-part-head" }, element("span", {}, word("Picture")), this.said, this.choice))
  }

  show() {
    const there = this.connected()
    const own = Math.abs(this.item.mask)
    const numbers = [...new Set([...there, ...(own ? [own] : [])])].sort((a, b) => a - b)
    const state = JSON.stringify([numbers, there, this.item.mask])
    if (state === this.state) return
    this.state = state
    const options = [0, ...numbers.flatMap((number) => [number, -number])]
    this.choice.replaceChildren(...options.map((mask) => element("option", { value: String(mask) }, place(mask))))
    this.choice.value = String(this.item.mask)
    this.choice.disabled = !numbers.length
    this.said.textContent = there.length ? "" : word("connect a mask to the node")
  }
}

/** What a row's mask is called. */
export function place(mask) {
  const name = { mask: `mask${Math.abs(mask)}` }
  if (!mask) return word("whole picture")
  return mask > 0 ? word("inside {mask}", name) : word("outside {mask}", name)
}

/** The numbers of the masks that are connected to a node. */
export function masksOf(node) {
  const linked = (node.inputs ?? []).filter(({ link }) => link != null)
  return linked.map(({ name }) => Number(/^masks\.mask(\d+)$/.exec(name)?.[1])).filter(Boolean)
}
