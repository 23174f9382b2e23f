// Puts a LoRA on a Load LoRA Stack from anywhere in the front end: on the one that is meant, or on a new one.

import { app } from "../../../../scripts/app.js"
import { bare } from "../library/library.js"
import { eachNode, freePlace, isLinked } from "../page/nodes.js"
import { asOneStep } from "../page/undo.js"
import { isRow, newRow, parse, print } from "../page/rows.js"

const STACK = "LoraLoom_LoadLoraStack"
const OURS = "LoraLoom_" // what is ours and takes a MODEL wants it as it was loaded, but for the stack itself

/**
 * Puts the file on the Load LoRA Stack that is selected, else on the one of the workflow on screen, else on a new one
 * behind the model's loader. A row that names it already is switched on. One step to undo; returns the node.
 */
export function addToStack(name) {
  return asOneStep(() => {
    const node = meant() ?? made(app.canvas.graph)
    put(node.widgets.find((widget) => widget.name === "rows"), name)
    return node
  })
}

/** Of several that could be meant, one on screen and in use comes first. A text that is linked is somebody else's. */
function meant() {
  const found = new Set()
  eachNode(app.rootGraph, (node) => node.comfyClass === STACK && !isLinked(node, "rows") && found.add(node))
  const selected = Object.values(app.canvas.selected_nodes ?? {})
  const likely = (node) => [selected.includes(node), node.graph === app.canvas.graph, !node.mode].map(Number).join("")
  return [...found].sort((a, b) => likely(b).localeCompare(likely(a)))[0]
}

function put(widget, name) {
  const items = parse(widget.value)
  const same = items.filter(isRow).find((row) => bare(row.name) === bare(name))
  if (same) same.on = true
  const added = print([newRow(name)])
  widget.value = same ? print(items) : [widget.value.trimEnd(), added].filter(Boolean).join("\n")
  widget.callback?.(widget.value)
}

// -- a new one -----------------------------------------------------------------------------------------------------

function made(graph) {
  const node = window.LiteGraph.createNode(STACK)
  const loader = loaderOf(graph, "MODEL")
  graph.add(node)
  node.pos = loader ? freePlace(node, loader) : [...app.canvas.graph_mouse]
  if (!loader) return node
  insert(node, loader, "MODEL")
  insert(node, slot(loader.outputs, "CLIP") ? loader : loaderOf(graph, "CLIP"), "CLIP")
  return node
}

/** What gives such a thing and takes none; first what somebody uses for more than training. */
function loaderOf(graph, type) {
  const found = graph.nodes.filter((node) => slot(node.outputs, type) && !slot(node.inputs, type) && !isOurs(node))
  return found.find((node) => uses(node, type).some((link) => !trains(graph, link))) ?? found[0]
}

/** Puts a node behind a loader: what used the loader's output uses the node's, but for what leads to a training. */
function insert(node, loader, type) {
  if (!loader) return
  const { graph } = node
  const moved = uses(loader, type).filter((link) => !trains(graph, link) && graph.getNodeById(link.target_id))
  const [from, to] = [slot(node.outputs, type), slot(node.inputs, type)]
  loader.connectSlots(slot(loader.outputs, type), node, to)
  for (const { target_id: id, target_slot: at } of moved) {
    const user = graph.getNodeById(id)
    node.connectSlots(from, user, user.inputs[at])
  }
}

function uses(node, type) {
  return [...(slot(node.outputs, type)?.links ?? [])].map((id) => node.graph.getLink(id)).filter(Boolean)
}

/** Whether a link leads to a node that trains, measures or saves: one of ours, or ComfyUI's own trainer. */
function trains(graph, link, seen = new Set()) {
  const node = graph.getNodeById(link.target_id)
  if (!node || seen.has(node)) return false
  seen.add(node)
  let found = isOurs(node)
  eachNode(node.subgraph, (inner) => (found ||= isOurs(inner)))
  return found || uses(node, link.type).some((next) => trains(graph, next, seen))
}

function isOurs(node) {
  return (node.comfyClass?.startsWith(OURS) && node.comfyClass !== STACK) || node.comfyClass === "TrainLoraNode"
}

function slot(slots, type) {
  return slots?.find((each) => each.type === type)
}
