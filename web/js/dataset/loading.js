// A picture of a data set as a Load Image node.

import { freePlace } from "../page/nodes.js"
import { asOneStep } from "../page/undo.js"
import { word } from "../page/words.js"
import { place } from "./server.js"

const [WIDTH, HEIGHT] = [300, 360] // px: room for its picture, or it would grow later, which were a step of its own

/** Puts Load Image with a picture of the page on the graph, where it is below ComfyUI's input folder. */
export async function toGraph(page, name) {
  const { subfolder } = await place(page.asked.folder, "").catch(() => ({}))
  if (subfolder === undefined) return page.say(word("Load Image finds only pictures below ComfyUI's input folder"), true)
  page.node.show([subfolder, name].filter((part) => part && part !== ".").join("/"))
  page.say(word("Load Image with {name} is on the graph", { name }))
}

/** Puts Load Image with a picture, by its name below ComfyUI's input folder, beside a node: one step to undo. */
export function putLoadImage(beside, picture) {
  return asOneStep(() => {
    const node = window.LiteGraph.createNode("LoadImage")
    beside.graph.add(node)
    node.setSize([Math.max(node.size[0], WIDTH), Math.max(node.size[1], HEIGHT)])
    node.pos = freePlace(node, beside)
    const field = node.widgets.find(({ name }) => name === "image")
    const { values } = field.options // as for a picture that is uploaded: the list has none of folders below
    if (Array.isArray(values) && !values.includes(picture)) values.push(picture)
    field.value = picture
    field.callback?.(picture)
    return node
  })
}
