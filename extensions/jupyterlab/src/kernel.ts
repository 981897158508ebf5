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

/** Start a kernel in the folder of a slide, and run code there that shows something; rejects with what people should know. */
export async function startViewer(services: ServiceManager.IManager, path: string, code: string): Promise<KernelViewer> {
  const session = await startSession(services, path);
  const kernel = session.kernel!;
  const ended = whenEnded(session, kernel);
  const leave = (): void => abandon(session);
  window.addEventListener("pagehide", leave);
  const end = (): void => {
    shutDown(session, kernel).catch(() => undefined).finally(() => window.removeEventListener("pagehide", leave));
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

async function shutDown(session: Session.ISessionConnection, kernel: Kernel.IKernelConnection): Promise<void> {
  // One that the server is just starting, also because it died, must be there before it can be shut down.
  if (!kernel.isDisposed && !THERE.includes(kernel.status)) {
    await new Promise<void>((done) => {
      kernel.statusChanged.connect((_, status) => THERE.includes(status) && done());
      kernel.connectionStatusChanged.connect((_, status) => status === "disconnected" && done());
    });
  }
  // Of one that somebody else has shut down nothing is left.
  if (!kernel.isDisposed) await session.shutdown();
}

/** Let a kernel end with its page, which cannot wait for an answer. */
function abandon({ id, serverSettings }: Session.ISessionConnection): void {
  const address = URLExt.join(serverSettings.baseUrl, "api/sessions", id);
  ServerConnection.makeRequest(address, { method: "DELETE", keepalive: true }, serverSettings).catch(() => undefined);
}
