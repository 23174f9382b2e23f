// Changes of the graph as steps that can be undone.

import { app } from "../../../../scripts/app.js"

/** What was changed until now is a step of its own. */
export function captured() {
  tracker()?.captureCanvasState?.()
}

/** Whatever `change` does to the graph is one step, however many the front end would make of it. Returns its result. */
export function asOneStep(change) {
  captured()
  app.canvas.emitBeforeChange()
  try {
    return change()
  } finally {
    app.canvas.emitAfterChange()
  }
}

/** Changes a node in the front end's record of how the graph is now, so that the next step to undo does not have it. */
export function quietly(node, change) {
  const state = tracker()?.activeState
  const { nodes } = node.graph === app.rootGraph ? state ?? {} : subgraphOf(state, node) ?? {}
  const saved = nodes?.find(({ id }) => id === node.id)
  if (saved) change(saved)
}

/** The height of a node is what we made it, which is nothing to undo; the width is a person's. */
export function heightened(node) {
  quietly(node, (saved) => (saved.size = [saved.size[0], node.size[1]]))
}

function tracker() {
  return app.extensionManager?.workflow?.activeWorkflow?.changeTracker
}

function subgraphOf(state, node) {
  return state?.definitions?.subgraphs?.find(({ id }) => id === node.graph?.id)
}
