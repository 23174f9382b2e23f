// How far a training is, as a badge of the subgraph's node that it is inside of: both renderers show those.

import { app } from "../../../../scripts/app.js"
import { eachNode } from "../page/nodes.js"
import { left, percent, standing } from "../runs/words.js"
import { shownBy } from "./which.js"

const TRAIN = "LoraLoom_TrainLora"
const badges = new WeakMap() // by node

/** Brings the badges of all subgraphs' nodes in line with what runs inside them. */
export function tellOutside() {
  eachNode(app.rootGraph, (node) => node.subgraph && show(node, told(node.subgraph)))
}

function told(graph) {
  const found = []
  eachNode(graph, (node) => {
    const run = node.comfyClass === TRAIN ? shownBy(node)?.run : undefined
    if (run?.state === "running") found.push(run.step ? [`${percent(run)} %`, left(run)].filter(Boolean).join(" \u00b7 ") : standing(run))
  })
  return found.join(", ")
}

/** Nodes 2.0 looks at badges when it is told of them, and passes over the first, which says where a node is from. */
function show(node, text) {
  const mine = badges.get(node)
  if ((mine?.text ?? "") === text) return
  const [before, others] = [node.badges, node.badges.filter((each) => each !== mine)]
  const [made, first] = [text, ""].map((each) => new window.LGraphBadge({ text: each }))
  badges.set(node, text ? made : undefined)
  node.badges = text ? [...(others.length ? others : [first]), made] : others
  const type = "node:property:changed"
  node.graph.trigger(type, { type, nodeId: node.id, property: "badges", oldValue: before, newValue: node.badges })
  node.setDirtyCanvas(true, true)
}
