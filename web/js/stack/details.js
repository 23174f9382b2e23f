// What folds out under a row: its trigger words, its strengths per block, and its parts of sampling and of the picture.

import { element, split } from "../page/dom.js"
import { Blocks } from "./blocks.js"
import { Mask } from "./mask.js"
import { word } from "../page/words.js"
import { Sampling } from "./sampling.js"
import { Words } from "./words.js"

/** `done` is called when a change of the item is complete; `known` tells of the `model` and the `masks` connected. */
export class Details {
  constructor(item, done, known) {
    this.item = item
    this.parts = [
      new Words(item, done), new Blocks(item, done, () => known.model), new Sampling(item, done),
      new Mask(item, done, () => known.masks),
    ]
    this.place = element("div", { className: "loom-row-place" })
    this.element = element("div", { className: "loom-row-details" }, this.place)
    this.element.append(...this.parts.map((part) => part.element))
  }

  show(file) {
    const folder = split(file?.name ?? this.item.name)[0]
    this.place.textContent = folder ? word("in {folder}", { folder }) : ""
    for (const part of this.parts) part.show(file)
  }
}
