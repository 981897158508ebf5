/** The jobs of this user in a side panel: state, progress, log, and what can be done about each. */
import type { Message } from "@lumino/messaging";
import { Widget } from "@lumino/widgets";
import { Server } from "../../viewer/src/server.ts";
import { jobsIcon } from "./icons.ts";

interface Progress {
  done: number;
  seconds_left: number | null;
  rate: number | null;
  loss: number | null;
  text: string;
}
interface Job {
  id: string;
  name: string;
  cluster: string;
  workers: number;
  nodes: number;
  number: string | null;
  submitted: string;
  state: string;
  message: string;
  progress: Progress;
}

const WHILE_RUNNING_MS = 2000;
const AT_REST_MS = 10_000;
const LOG_LINES = 200;
const ACTIVE = ["queued", "running", "requeued"];
const ENDED = ["failed", "cancelled", "lost"];

export class JobsPanel extends Widget {
  private readonly server = Server.ofPage();
  private readonly list = element("div", "dhlab-jobs-list", { role: "list" });
  private readonly note = element("p", "dhlab-jobs-note", { role: "status" });
  private readonly log = element("pre", "dhlab-jobs-log", { role: "log", tabindex: "0", "aria-label": "Log of the job" });
  private readonly rows = new Map<string, Row>();
  private timer: ReturnType<typeof setTimeout> | undefined;
  private chosen: string | undefined;
  private looking = false;

  constructor() {
    super();
    this.id = "dhlab-jobs";
    this.addClass("dhlab-jobs");
    Object.assign(this.title, { icon: jobsIcon, caption: "Jobs of dhlab", closable: true });
    const head = element("h2", "dhlab-jobs-title");
    head.textContent = "Jobs";
    this.note.textContent = "Looking for jobs …";
    this.node.append(head, this.note, this.list);
  }

  protected override onAfterShow(message: Message): void {
    super.onAfterShow(message);
    void this.look();
  }

  protected override onAfterHide(message: Message): void {
    super.onAfterHide(message);
    clearTimeout(this.timer);
  }

  override dispose(): void {
    clearTimeout(this.timer);
    super.dispose();
  }

  /** Ask what there is, show it, and ask again as long as somebody can see it. */
  private async look(): Promise<void> {
    clearTimeout(this.timer);
    if (this.looking || this.isDisposed) return;
    this.looking = true;
    let pause = AT_REST_MS;
    try {
      const jobs = await this.get<{ jobs: Job[] }>("dhlab/jobs");
      this.draw(jobs.jobs);
      if (jobs.jobs.some(({ state }) => ACTIVE.includes(state))) pause = WHILE_RUNNING_MS;
      if (this.chosen) await this.readLog(this.chosen);
    } catch (error) {
      this.note.textContent = (error as Error).message;
    } finally {
      this.looking = false;
    }
    if (this.isVisible) this.timer = setTimeout(() => void this.look(), pause);
  }

  private draw(jobs: Job[]): void {
    this.note.textContent = jobs.length ? "" : "No jobs yet. dh.submit(dh.fit, …, workers=2) begins one; it goes on when the notebook is closed.";
    const gone = new Set(this.rows.keys());
    jobs.forEach((job, place) => {
      gone.delete(job.id);
      const row = this.rows.get(job.id) ?? this.addRow(job.id);
      row.update(job);
      if (this.list.children[place] !== row.node) this.list.insertBefore(row.node, this.list.children[place] ?? null);
    });
    for (const id of gone) {
      this.rows.get(id)!.node.remove();
      this.rows.delete(id);
    }
  }

  private addRow(id: string): Row {
    const row = new Row({
      choose: () => this.choose(id),
      order: (what) => void this.order(id, what),
    });
    this.rows.set(id, row);
    return row;
  }

  private choose(id: string): void {
    this.chosen = this.chosen === id ? undefined : id;
    for (const [key, row] of this.rows) row.open(key === this.chosen, this.log);
    this.log.textContent = "";
    if (this.chosen) void this.readLog(this.chosen);
  }

  private async readLog(id: string): Promise<void> {
    let text: string;
    try {
      ({ text } = await this.get<{ text: string }>(`dhlab/jobs/${encodeURIComponent(id)}/log?lines=${LOG_LINES}`));
    } catch (error) {
      text = (error as Error).message;
    }
    if (id !== this.chosen) return;
    // Whoever reads further up stays there.
    const atEnd = this.log.scrollTop + this.log.clientHeight >= this.log.scrollHeight - 8;
    this.log.textContent = text || "nothing printed yet";
    if (atEnd) this.log.scrollTop = this.log.scrollHeight;
  }

  private async order(id: string, what: "cancel" | "resume"): Promise<void> {
    try {
      if (!this.server) throw new Error(NO_SERVER);
      this.rows.get(id)?.update(await this.server.post<Job>(`dhlab/jobs/${encodeURIComponent(id)}/${what}`, {}));
      this.note.textContent = "";
    } catch (error) {
      this.note.textContent = (error as Error).message;
    }
    void this.look();
  }

  private async get<T>(path: string): Promise<T> {
    if (!this.server) throw new Error(NO_SERVER);
    return (await (await this.server.get(path)).json()) as T;
  }
}

const NO_SERVER = "this page does not say which Jupyter server it belongs to; reload it.";

/** One job: a line that opens. */
class Row {
  readonly node = element("div", "dhlab-job", { role: "listitem" });
  private readonly head = element("button", "dhlab-job-head", { type: "button", "aria-expanded": "false" });
  private readonly name = element("span", "dhlab-job-name");
  private readonly state = element("span", "dhlab-job-state");
  private readonly bar = element("progress", "dhlab-job-bar", { max: "1" });
  private readonly line = element("span", "dhlab-job-line");
  private readonly more = element("div", "dhlab-job-more", { hidden: "" });
  private readonly about = element("p", "dhlab-job-about");
  private readonly buttons = element("div", "dhlab-job-buttons");
  private readonly cancel: HTMLElement;
  private readonly resume: HTMLElement;

  constructor(acts: { choose(): void; order(what: "cancel" | "resume"): void }) {
    this.cancel = this.button("Cancel", "Stop it; a training writes its state first", () => acts.order("cancel"));
    this.resume = this.button("Resume", "Begin it again; a training continues where it stopped", () => acts.order("resume"));
    this.head.append(this.name, this.state, this.bar, this.line);
    this.head.addEventListener("click", () => acts.choose());
    this.more.append(this.about, this.buttons);
    this.node.append(this.head, this.more);
  }

  update(job: Job): void {
    const { progress, state } = job;
    this.node.dataset.state = state;
    this.name.textContent = job.name;
    this.state.textContent = state;
    this.bar.setAttribute("aria-label", `Progress of ${job.name}`);
    this.bar.setAttribute("value", String(state === "done" ? 1 : progress.done));
    this.bar.hidden = state === "queued" || (progress.done === 0 && state !== "running" && state !== "done");
    this.line.textContent = job.message || sayProgress(progress, state);
    const team = job.workers > 1 ? `${job.workers} workers${job.nodes > 1 ? ` on ${job.nodes} machines` : ""}` : "one process";
    const place = job.cluster === "slurm" ? `Slurm${job.number ? ` ${job.number}` : ""}` : "this machine";
    this.about.textContent = `${job.id}: ${team}, ${place}, since ${new Date(job.submitted).toLocaleString()}`;
    this.cancel.hidden = !ACTIVE.includes(state);
    this.resume.hidden = !ENDED.includes(state);
  }

  open(opened: boolean, log: HTMLElement): void {
    this.head.setAttribute("aria-expanded", String(opened));
    this.more.hidden = !opened;
    if (opened) this.more.append(log);
  }

  private button(label: string, tooltip: string, act: () => void): HTMLElement {
    const made = element("button", "jp-mod-styled", { type: "button", title: tooltip });
    made.textContent = label;
    made.addEventListener("click", act);
    this.buttons.append(made);
    return made;
  }
}

function sayProgress({ done, seconds_left: left, rate, loss, text }: Progress, state: string): string {
  const parts = [text];
  if (ACTIVE.includes(state)) {
    if (done > 0) parts.unshift(`${Math.round(100 * done)} %`);
    if (loss !== null) parts.push(`loss ${sayNumber(loss)}`);
    if (rate !== null) parts.push(`${sayNumber(rate)}/s`);
    if (left !== null) parts.push(`${sayDuration(left)} left`);
  }
  return parts.filter(Boolean).join(" · ");
}

/** Three digits, as in the table of a cell; the words around it are English. */
function sayNumber(value: number): string {
  return value.toLocaleString("en", { maximumSignificantDigits: 3 });
}

function sayDuration(seconds: number): string {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function element<K extends keyof HTMLElementTagNameMap>(tag: K, name: string, attributes: Record<string, string> = {}): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  made.className = name;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
