// LoRA Loom in the front end: what its nodes report, and the list of rows on Load LoRA Stack.

import { app } from "../../../scripts/app.js"
import { Pictures } from "./dataset/node.js"
import { complete } from "./library/files.js"
import { refresh } from "./library/library.js"
import { measures } from "./measures/measures.js"
import { element } from "./page/dom.js"
import { after } from "./page/nodes.js"
import { learn } from "./page/words.js"
import { Body, hearAll, watchZoom } from "./run/body.js"
import * as runs from "./runs/store.js"
import { addList, panelTab } from "./runs/tabs.js"
import { forget } from "./stack/model.js"
import { Stack } from "./stack/stack.js"
import { openOn, Report } from "./told/report.js"
import { hear, showAll, soon } from "./told/told.js"
import { keepStyled, restyle, wordsForZeros } from "./told/zeros.js"

const STYLES = ["page", "told", "stack", "library", "runs", "measures", "run", "dataset"]

app.registerExtension({
  name: "LoraLoom",
  bottomPanelTabs: [panelTab],
  async init() {
    for (const name of STYLES) {
      document.head.append(element("link", { rel: "stylesheet", href: new URL(`../css/${name}.css`, import.meta.url).href }))
    }
    hear(openOn)
    runs.hear()
    hearAll()
    await learn()
  },
  setup() {
    keepStyled()
    addList()
    watchZoom()
  },
  beforeRegisterNodeDef(_nodeType, definition) {
    if (definition.name.startsWith("LoraLoom_")) complete(definition)
  },
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("LoraLoom_")) return
    for (const widget of node.widgets ?? []) after(widget, "callback", soon)
    wordsForZeros(node)
    after(node, "onAdded", restyle)
    if (node.comfyClass === "LoraLoom_LoadLoraStack") new Stack(node)
    if (node.comfyClass === "LoraLoom_Dataset") new Pictures(node)
    measures(node)
    if (node.comfyClass === "LoraLoom_TrainLora") new Body(node)
    else new Report(node)
  },
  afterConfigureGraph() {
    showAll()
    restyle()
  },
  refreshComboInNodes() {
    refresh()
    forget()
  },
})
