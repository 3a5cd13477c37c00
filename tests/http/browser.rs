//! The page in a real browser: headless Chromium through its driver.

use std::{
    io::{BufRead, BufReader},
    panic::{AssertUnwindSafe, resume_unwind},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use fantoccini::{Client, ClientBuilder, Locator, elements::Element};
use futures::FutureExt;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

use crate::harness::Server;

/// Longer than anything should take here, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
const MISSING: &str = "the browser tests need Chromium and its driver: `make browser` installs them on Debian \
                       (apt-get install chromium chromium-driver); elsewhere put `chromedriver` into PATH";

/// The driver's process.
struct Driver {
    child: Child,
    address: String,
}

impl Driver {
    fn start() -> Self {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{MISSING} ({error})"));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        // "ChromeDriver was started successfully on port 12345."
        let port = lines.by_ref().find_map(|line| Some(line.split_once("successfully on port ")?.1.trim_end_matches('.').to_owned()));
        // Its further words are of no interest, but it shall not wait for a reader of them.
        thread::spawn(move || lines.for_each(drop));
        let port = port.expect("chromedriver says its port");
        Self { child, address: format!("http://127.0.0.1:{port}") }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The page of a server, open in a browser.
pub(crate) struct Page {
    client: Client,
    origin: String,
    driver: String,
}

/// Opens the server's page in a browser of its own, and does with it what a test wants. In the end the browser has asked nobody but the
/// server, and its console holds no error but those that contain a text of `expected`.
pub(crate) fn visit(server: &Server, expected: &[&str], test: impl AsyncFnOnce(&Page)) {
    let driver = Driver::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let page = Page::open(&driver, server).await;
        let outcome = AssertUnwindSafe(async {
            test(&page).await;
            page.was_well_behaved(expected).await;
        })
        .catch_unwind()
        .await;
        // A browser whose driver is gone would live on.
        let _ = page.client.close().await;
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
    });
}

impl Page {
    async fn open(driver: &Driver, server: &Server) -> Self {
        let arguments = [
            "--headless=new",
            // Without a sandbox, since tests often run as root in a container; it opens nothing but the page.
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--window-size=1280,1000",
        ];
        let capabilities = json!({
            "browserName": "chrome",
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        });
        let Value::Object(capabilities) = capabilities else { unreachable!("it is written as an object") };
        let mut builder = ClientBuilder::new(HttpConnector::new());
        let client = builder.capabilities(capabilities).connect(&driver.address).await;
        let client = client.unwrap_or_else(|error| panic!("{MISSING} ({error})"));
        let page = Self { client, origin: format!("http://{}", server.address()), driver: driver.address.clone() };
        page.client.goto(&page.origin).await.unwrap();
        page
    }

    /// Opens the page anew.
    pub(crate) async fn reload(&self) {
        self.client.refresh().await.unwrap();
    }

    /// The value of an expression on the page.
    pub(crate) async fn value(&self, expression: &str) -> Value {
        self.run(&format!("return ({expression});"), vec![]).await
    }

    pub(crate) async fn run(&self, script: &str, arguments: Vec<Value>) -> Value {
        self.client.execute(script, arguments).await.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// Waits until an expression holds.
    #[track_caller]
    pub(crate) fn until(&self, expression: &str) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let began = Instant::now();
            while self.value(&format!("Boolean({expression})")).await != true {
                if began.elapsed() > PATIENCE {
                    let words = self.value("document.body.innerText").await;
                    panic!("{caller}: never {expression}; the page says:\n{}", words.as_str().unwrap_or_default());
                }
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
        }
    }

    /// Waits until the first picture has been looked at.
    pub(crate) async fn is_settled(&self) {
        self.until("verdict.textContent && !canvas.ariaBusy").await;
    }

    pub(crate) async fn find(&self, css: &str) -> Element {
        self.client.find(Locator::Css(css)).await.unwrap_or_else(|error| panic!("{css}: {error}"))
    }

    pub(crate) async fn click(&self, css: &str) {
        self.value(&format!("document.querySelector({css:?}).scrollIntoView({{ block: 'center' }})")).await;
        self.find(css).await.click().await.unwrap_or_else(|error| panic!("{css}: {error}"));
    }

    /// Presses keys while an element has the focus.
    pub(crate) async fn type_into(&self, css: &str, keys: &str) {
        self.find(css).await.send_keys(keys).await.unwrap_or_else(|error| panic!("{css}: {error}"));
    }

    /// Moves a slider or chooses an option, as a person does.
    pub(crate) async fn set(&self, id: &str, value: &str) {
        let script = "const [id, value] = arguments, field = document.getElementById(id); field.value = value; \
                      for (const name of ['input', 'change']) field.dispatchEvent(new Event(name, { bubbles: true }));";
        self.run(script, vec![json!(id), json!(value)]).await;
    }

    pub(crate) async fn text(&self, id: &str) -> String {
        self.value(&format!("document.getElementById({id:?}).textContent")).await.as_str().unwrap().to_owned()
    }

    /// A number that tells apart what a canvas shows.
    pub(crate) async fn drawing(&self, id: &str) -> Value {
        let script = "const canvas = document.getElementById(arguments[0]); \
                      const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height); \
                      return data.reduce((sum, value, at) => (sum * 31 + value + at) % 1000000007, 7);";
        self.run(script, vec![json!(id)]).await
    }

    /// Does something, and waits until a canvas shows something else.
    pub(crate) async fn redraws(&self, id: &str, act: impl Future<Output = ()>) {
        let before = self.drawing(id).await;
        act.await;
        let began = Instant::now();
        while self.drawing(id).await == before {
            assert!(began.elapsed() < PATIENCE, "#{id} shows the same as before");
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    }

    /// Emulates a screen: its width and height in pixels, light or dark.
    pub(crate) async fn screen(&self, width: u32, height: u32, scheme: &str) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.tell_browser("Emulation.setDeviceMetricsOverride", size).await;
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.tell_browser("Emulation.setEmulatedMedia", features).await;
    }

    /// A command of the browser's own protocol.
    pub(crate) async fn tell_browser(&self, command: &str, parameters: Value) -> Value {
        self.ask_driver("goog/cdp/execute", &json!({ "cmd": command, "params": parameters })).await
    }

    /// Commands that are not among those of the standard.
    async fn ask_driver(&self, route: &str, body: &Value) -> Value {
        let session = self.client.session_id().await.unwrap().unwrap();
        let response = ureq::post(format!("{}/session/{session}/{route}", self.driver))
            .header("content-type", "application/json")
            .send(body.to_string())
            .unwrap_or_else(|error| panic!("{route}: {error}"))
            .body_mut()
            .with_config()
            .limit(1 << 28)
            .read_to_string()
            .unwrap();
        serde_json::from_str::<Value>(&response).unwrap()["value"].take()
    }

    async fn log(&self, kind: &str) -> Vec<Value> {
        let Value::Array(lines) = self.ask_driver("se/log", &json!({ "type": kind })).await else { panic!("no log {kind}") };
        lines
    }

    async fn was_well_behaved(&self, expected: &[&str]) {
        for line in self.log("browser").await {
            let message = line["message"].as_str().unwrap();
            assert!(expected.iter().any(|text| message.contains(text)), "on the console: {line}");
        }
        let mut asked = 0;
        for line in self.log("performance").await {
            let event: Value = serde_json::from_str(line["message"].as_str().unwrap()).unwrap();
            if event["message"]["method"] == "Network.requestWillBeSent" {
                let url = event["message"]["params"]["request"]["url"].as_str().unwrap();
                let own = url.strip_prefix(&self.origin).is_some_and(|path| path.starts_with('/'));
                assert!(own || url.starts_with("blob:") || url.starts_with("data:"), "the page asked {url}");
                asked += 1;
            }
        }
        assert!(asked > 10, "the log of requests holds only {asked}");
    }
}
