// How far a training is, as a badge of the subgraph's node that it is inside of. Only the canvas: Nodes 2.0 draws the
// bar and the curve of what runs inside on that node itself, and does not look at badges that change.

import { app } from "../../../../scripts/app.js"
import { eachNode } from "../page/nodes.js"
import { left, percent, standing } from "../runs/words.js"
import { shownBy } from "./which.js"

const TRAIN = "LoraLoom_TrainLora"
const badges = new WeakMap() // by node

/** Brings the badges of all subgraphs' nodes in line with what runs inside them. */
export function tellOutside() {
  const drawn = !window.LiteGraph.vueNodesMode
  eachNode(app.rootGraph, (node) => node.subgraph && show(node, drawn ? told(node.subgraph) : ""))
}

function told(graph) {
  const found = []
  eachNode(graph, (node) => {
    const run = node.comfyClass === TRAIN ? shownBy(node)?.run : undefined
    if (run?.state === "running") found.push(run)
  })
  return found.map((run) => (run.step ? [`${percent(run)} %`, left(run)].filter(Boolean).join(" \u00b7 ") : standing(run))).join(", ")
}

function show(node, text) {
  const mine = badges.get(node)
  if ((mine?.text ?? "") === text) return
  const made = text ? new window.LGraphBadge({ text }) : undefined
  node.badges = [...node.badges.filter((each) => each !== mine), ...(made ? [made] : [])]
  badges.set(node, made)
  node.setDirtyCanvas(true, true)
}
