/** The Jupyter server that this page comes from: its address, also behind a Hub, and requests that it accepts. */
const CONFIG = "jupyter-config-data";

export class ServerError extends Error {
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

export class Server {
  constructor(readonly base: string) {}

  /** The server of a JupyterLab or Notebook page; undefined on other pages. */
  static ofPage(): Server | undefined {
    const config = document.getElementById(CONFIG)?.textContent;
    const base = config ? (JSON.parse(config) as { baseUrl?: string }).baseUrl : undefined;
    return base === undefined ? undefined : new Server(base.endsWith("/") ? base : `${base}/`);
  }

  get(path: string, signal?: AbortSignal): Promise<Response> {
    return this.request(path, { signal: signal ?? null });
  }

  async post<T>(path: string, body: unknown, signal?: AbortSignal): Promise<T> {
    const headers = { "Content-Type": "application/json" };
    const answer = await this.request(path, { method: "POST", body: JSON.stringify(body), headers, signal: signal ?? null });
    return (await answer.json()) as T;
  }

  private async request(path: string, options: RequestInit): Promise<Response> {
    // A Hub sends a fetch without this header round in circles, a GET too.
    const token = /(?:^|;\s*)_xsrf=([^;]*)/.exec(document.cookie)?.[1];
    const headers = { ...options.headers, ...(token && { "X-XSRFToken": decodeURIComponent(token) }) };
    let answer: Response;
    try {
      answer = await fetch(this.base + path, { ...options, headers, credentials: "same-origin" });
    } catch (error) {
      options.signal?.throwIfAborted();
      throw new ServerError(0, `the Jupyter server does not answer (${(error as Error).message}). Is it still running?`);
    }
    if (answer.ok) return answer;
    throw new ServerError(answer.status, await say(answer));
  }
}

async function say(answer: Response): Promise<string> {
  try {
    const { message } = (await answer.json()) as { message?: string };
    if (message) return message;
  } catch {
    // Proxies and old servers answer in HTML, which says no more than the status does.
  }
  const help = answer.status === 404 ? "; is dhlab's extension of the server on? See: jupyter server extension list" : "";
  return `the Jupyter server answered ${answer.status} ${answer.statusText}${help}`;
}
