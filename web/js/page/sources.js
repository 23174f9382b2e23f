// Where what comes into a node comes from: back along its links, through reroutes, bypassed nodes and subgraphs.

import { app } from "../../../../scripts/app.js"
import { eachNode } from "./nodes.js"

const OUTSIDE = -10 // what a link inside a subgraph begins at that comes from outside
const BYPASSED = 4
const FARTHEST = 200 // nodes, as links may go in circles

/**
 * Yields the node that an input comes from, then the one that its first input of the same type comes from, and so on.
 * Bypassed nodes and reroutes are passed over.
 */
export function* sourcesOf(node, name) {
  let [at, type] = [node, node?.inputs?.find((input) => input.name === name)?.type]
  let found = originOf(node, node?.inputs?.findIndex((input) => input.name === name) ?? -1)
  for (let count = 0; found && count < FARTHEST; count++) {
    at = found.node
    const passes = at.mode === BYPASSED || at.isVirtualNode
    if (!passes) yield at
    found = originOf(at, slotLike(at, type, found.slot, passes))
  }
}

/** The nodes that the inputs of a node come from, which are of a type. */
export function sourcesOfType(node, type) {
  const inputs = (node?.inputs ?? []).filter((input) => input.type === type && input.link != null)
  return inputs.map((input) => sourcesOf(node, input.name).next().value).filter(Boolean)
}

/** The value of a widget by its name. */
export function valueOf(node, name) {
  return node?.widgets?.find((widget) => widget.name === name)?.value
}

/** The node and output that an input is linked to, inside a subgraph or outside of it. */
function originOf(node, slot) {
  const link = node?.graph?.getLink?.(node.inputs?.[slot]?.link)
  return link ? resolved(node.graph, link.origin_id, link.origin_slot) : null
}

function resolved(graph, id, slot) {
  if (id === OUTSIDE) return originOf(holderOf(graph), slot)
  const node = graph.getNodeById(id)
  const inner = node?.subgraph
  if (!inner) return node ? { node, slot } : null
  const link = inner.getLink(inner.outputs?.[slot]?.linkIds?.[0])
  return link ? resolved(inner, link.origin_id, link.origin_slot) : null
}

/** The node that stands for a subgraph; the first of several. */
function holderOf(graph) {
  let found = null
  eachNode(app.rootGraph, (node) => node.subgraph === graph && (found ??= node))
  return found
}

/** The input that goes on with what came out: of a node that passes through, as the front end chooses it. */
function slotLike(node, type, output, passes) {
  const inputs = node.inputs ?? []
  if (passes && (inputs[output]?.type === type || node.isVirtualNode)) return node.isVirtualNode ? 0 : output
  return inputs.findIndex((input) => input.type === type)
}
