/** A kernel behind a tab: it runs a viewer of its own, whose state and messages travel over the widget's comm. */
import { PathExt, URLExt } from "@jupyterlab/coreutils";
import { type Kernel, ServerConnection, type ServiceManager, type Session } from "@jupyterlab/services";
import { newId } from "../../viewer/src/drawing/features.ts";
import { WidgetModel } from "./model.ts";

export interface KernelViewer {
  model: WidgetModel;
  /** Comes true when the kernel has gone, whoever ended it. */
  ended: Promise<void>;
  end(): void;
}

// What ipywidgets names the comms that it opens.
const TARGET = "jupyter.widget";
const THERE: Kernel.Status[] = ["starting", "idle", "busy"];
const GONE: Kernel.Status[] = ["autorestarting", "restarting", "terminating", "dead"];
const FORBIDDEN = 403;
// How long a kernel that starts is waited for, and how often the server is then asked to end it, and after what pause.
const START_MS = 5_000;
const AGAIN_MS = 2_000;
const ATTEMPTS = 20;

/** Start a kernel in the folder of a slide, and run code there that shows something; rejects with what people should know. */
export async function startViewer(services: ServiceManager.IManager, path: string, code: string): Promise<KernelViewer> {
  const session = await startSession(services, path);
  const kernel = session.kernel!;
  const ended = whenEnded(session, kernel);
  const leave = (): void => abandon(session);
  window.addEventListener("pagehide", leave);
  const end = (): void => {
    void shutDown(services, session, kernel).finally(() => window.removeEventListener("pagehide", leave));
  };
  try {
    const gone = ended.then(() => Promise.reject(new Error("the kernel ended before it had begun. Start it again.")));
    return { model: await Promise.race([run(kernel, code), gone]), ended, end };
  } catch (error) {
    end();
    throw error;
  }
}

async function startSession({ sessions, kernelspecs }: ServiceManager.IManager, path: string): Promise<Session.ISessionConnection> {
  await kernelspecs.ready;
  const name = PathExt.basename(path);
  // At the slide's own path JupyterLab would connect every tab of it; as a console, a click among what runs opens one.
  const place = PathExt.join(PathExt.dirname(path), `${name}-${newId()}`);
  try {
    return await sessions.startNew({ path: place, type: "console", name: `${name}: live learning`, kernel: { name: kernelspecs.specs?.default } as never });
  } catch (error) {
    const forbidden = error instanceof ServerConnection.ResponseError && error.response.status === FORBIDDEN;
    throw forbidden ? new Error("You may not start kernels on this server, and learning runs in one.") : error;
  }
}

/** Run code and return the state of the viewer that it makes. */
function run(kernel: Kernel.IKernelConnection, code: string): Promise<WidgetModel> {
  return new Promise((resolve, reject) => {
    kernel.registerCommTarget(TARGET, (comm, { content: { data } }) => {
      const state = data.state as Record<string, unknown>;
      if ("_scene" in state) resolve(new WidgetModel(comm, state));
    });
    kernel.requestExecute({ code, silent: true, store_history: false }).done.then(({ content }) => {
      if (content.status === "error") reject(new Error(`The kernel cannot learn: ${content.evalue || content.ename}`));
    }, reject);
  });
}

function whenEnded(session: Session.ISessionConnection, kernel: Kernel.IKernelConnection): Promise<void> {
  return new Promise((resolve) => {
    session.disposed.connect(() => resolve());
    kernel.disposed.connect(() => resolve());
    kernel.statusChanged.connect((_, status) => GONE.includes(status) && resolve());
    kernel.connectionStatusChanged.connect((_, status) => status === "disconnected" && resolve());
  });
}

/** End a kernel, and look whether it has gone: while the server starts one, also again because it died, it may not be able to. */
async function shutDown({ sessions }: ServiceManager.IManager, { id }: Session.ISessionConnection, kernel: Kernel.IKernelConnection): Promise<void> {
  await Promise.race([whenThere(kernel), sleep(START_MS)]);
  for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
    await sessions.refreshRunning().catch(() => undefined);
    if (![...sessions.running()].some((one) => one.id === id)) return;
    await sessions.shutdown(id).catch(() => undefined);
    await sleep(AGAIN_MS);
  }
}

function whenThere(kernel: Kernel.IKernelConnection): Promise<void> {
  return new Promise((resolve) => {
    const look = (): void => { if (kernel.isDisposed || THERE.includes(kernel.status)) resolve(); };
    look();
    kernel.statusChanged.connect(look);
    kernel.disposed.connect(look);
  });
}

function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** Let a kernel end with its page, which cannot wait for an answer. */
function abandon({ id, serverSettings }: Session.ISessionConnection): void {
  const address = URLExt.join(serverSettings.baseUrl, "api/sessions", id);
  ServerConnection.makeRequest(address, { method: "DELETE", keepalive: true }, serverSettings).catch(() => undefined);
}
