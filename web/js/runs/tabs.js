// The two tabs of the runs: the list in the side bar, whose badge tells how far the running one is, and the panel.

import { app } from "../../../../scripts/app.js"
import { openPanel, PANEL, RunPanel } from "./panel.js"
import { Sidebar } from "./sidebar.js"
import * as store from "./store.js"
import { percent } from "./words.js"
import { word } from "../page/words.js"

const LIST = "lora-loom-runs"
const NARROW = 700 // px of a window

/** For the front end's own list of tabs of the panel. */
export const panelTab = {
  id: PANEL, type: "custom", ...slot(() => new RunPanel()),
  get title() {
    return word("LoRA run")
  },
}

/** Puts the list into the side bar, where the front end has one. */
export function addList() {
  const { extensionManager } = app
  const name = word("LoRA runs")
  if (!extensionManager?.registerSidebarTab) return
  extensionManager.registerSidebarTab({
    id: LIST, title: name, tooltip: name, label: name, icon: "pi pi-chart-line", type: "custom", iconBadge: "",
    ...slot(() => new Sidebar(showPanel)),
  })
  store.listen(badge)
  badge()
}

/** Beside the list, or instead of it where there is no room for both. */
function showPanel() {
  openPanel()
  const { activeSidebarTabId, toggleSidebarTab } = app.extensionManager.sidebarTab ?? {}
  if (innerWidth < NARROW && activeSidebarTabId === LIST) toggleSidebarTab?.(LIST)
}

/** A tab that the front end keeps shows another badge when this one, not the one that was handed over, is changed. */
function badge() {
  const tab = app.extensionManager.getSidebarTabs?.().find(({ id }) => id === LIST)
  const running = store.runs().find(({ state }) => state === "running")
  const words = running ? `${percent(running)}%` : ""
  if (tab && tab.iconBadge !== words) tab.iconBadge = words
}

/** What a tab does when it is opened, which the front end may say more than once, and when it is closed. */
function slot(make) {
  let view = null
  return {
    render(box) {
      if (!view) {
        view = make()
        view.begin()
      }
      box.classList.add("loom-slot")
      if (view.element.parentElement !== box) box.replaceChildren(view.element)
    },
    destroy() {
      view?.end()
      view = null
    },
  }
}
