//! The page in a real browser: headless Chromium through its driver, in the words of the `WebDriver` standard
//! (<https://www.w3.org/TR/webdriver2/>), which is JSON over HTTP.

use std::{
    io::{BufRead, BufReader},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::Server;

/// Longer than anything should take here, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(90);
/// Time between two looks at what is waited for.
const GLANCE: Duration = Duration::from_millis(40);
const MISSING: &str = "the tests of the page need Chromium and its driver: `make browser` installs them on Debian \
                       (apt-get install chromium chromium-driver); elsewhere put `chromedriver` into PATH";
/// What an element is called in the protocol's JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
const ARGUMENTS: [&str; 7] = [
    "--headless=new",
    // Tests often run as root in a container, where the sandbox cannot be had; nothing but the page is opened.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--window-size=1280,1000",
];

/// The page of a server, open in a browser of its own.
pub(crate) struct Page {
    driver: Child,
    agent: ureq::Agent,
    /// Address of the driver's session, to which commands are relative.
    session: String,
    /// Where the page lies, without the slash at its end. Everything that is asked for lies below it.
    origin: String,
}

/// Opens the server's page and does with it what a test wants. At the end the browser has sent requests to the server alone, and its console
/// holds no error but those that contain a text of `expected`.
pub(crate) fn visit(server: &Server, expected: &[&str], test: impl FnOnce(&Page)) {
    visit_at(&format!("http://{}", server.address()), expected, test);
}

/// [`visit`] of a page at another address, which nothing may be asked outside of.
pub(crate) fn visit_at(origin: &str, expected: &[&str], test: impl FnOnce(&Page)) {
    let page = Page::open(origin);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        test(&page);
        page.was_well_behaved(expected);
    }));
    // A browser whose driver is gone would live on.
    drop(page);
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}

/// A driver, and the port that it listens on. It wants the same port of IPv4 and IPv6, of which another program may have one: then it ends, and
/// the next one takes another port.
fn driver() -> (Child, String) {
    for _ in 0..5 {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = command.spawn().unwrap_or_else(|error| panic!("{MISSING} ({error})"));
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().map_while(Result::ok);
        // "ChromeDriver was started successfully on port 12345."
        let port = lines.by_ref().find_map(|line| Some(line.split_once("successfully on port ")?.1.trim_end_matches('.').to_owned()));
        // Its further words are of no interest, but it shall not wait for a reader of them.
        thread::spawn(move || lines.for_each(drop));
        match port {
            Some(port) => return (driver, port),
            None => drop((driver.kill(), driver.wait())),
        }
    }
    panic!("chromedriver names its port")
}

impl Page {
    fn open(origin: &str) -> Self {
        let (driver, port) = driver();
        let address = format!("http://127.0.0.1:{port}/session");
        let agent = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT)).build().into();
        let mut page = Self { driver, agent, session: address, origin: origin.to_owned() };
        let capabilities = json!({
            "browserName": "chrome",
            "goog:chromeOptions": { "args": ARGUMENTS },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        });
        let session = page
            .command("", &json!({ "capabilities": { "alwaysMatch": capabilities } }))
            .unwrap_or_else(|error| panic!("{MISSING} ({error})"));
        page.session = format!("{}/{}", page.session, session["sessionId"].as_str().unwrap());
        page.go("/");
        page
    }

    /// Opens the page at a path.
    pub(crate) fn go(&self, path: &str) {
        self.must("/url", &json!({ "url": format!("{}{path}", self.origin) }));
    }

    /// A command of the protocol; the error is what the driver says.
    fn command(&self, route: &str, body: &Value) -> Result<Value, String> {
        let request = self.agent.post(format!("{}{route}", self.session)).header("content-type", "application/json");
        let mut response = request.send(body.to_string()).map_err(|error| error.to_string())?;
        let text = response.body_mut().with_config().limit(1 << 28).read_to_string().map_err(|error| error.to_string())?;
        let mut answer: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        if response.status().is_success() { Ok(answer["value"].take()) } else { Err(answer["value"]["message"].to_string()) }
    }

    #[track_caller]
    pub(crate) fn must(&self, route: &str, body: &Value) -> Value {
        self.command(route, body).unwrap_or_else(|error| panic!("{route} {body}: {error}"))
    }

    /// Opens the page anew.
    pub(crate) fn reload(&self) {
        self.must("/refresh", &json!({}));
    }

    /// The value of an expression on the page.
    #[track_caller]
    pub(crate) fn value(&self, expression: &str) -> Value {
        self.run(&format!("return ({expression});"), &json!([]))
    }

    /// What a script answers; its arguments are `arguments[0]` and so on.
    #[track_caller]
    pub(crate) fn run(&self, script: &str, arguments: &Value) -> Value {
        self.must("/execute/sync", &json!({ "script": script, "args": arguments }))
    }

    /// Waits until an expression holds.
    #[track_caller]
    pub(crate) fn until(&self, expression: &str) {
        let began = Instant::now();
        while self.value(&format!("Boolean({expression})")) != true {
            let words = || self.value("document.body.innerText").as_str().unwrap_or_default().to_owned();
            assert!(began.elapsed() < TIMEOUT, "never {expression}; the page says:\n{}", words());
            thread::sleep(GLANCE);
        }
    }

    /// Waits until the picture has been looked at.
    #[track_caller]
    pub(crate) fn is_settled(&self) {
        self.until("verdict.textContent && !canvas.ariaBusy");
    }

    #[track_caller]
    fn element(&self, css: &str) -> String {
        let found = self.must("/element", &json!({ "using": "css selector", "value": css }));
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(crate) fn click(&self, css: &str) {
        self.must(&format!("/element/{}/click", self.element(css)), &json!({}));
    }

    /// Presses keys while an element has the focus.
    #[track_caller]
    pub(crate) fn type_into(&self, css: &str, keys: &str) {
        self.must(&format!("/element/{}/value", self.element(css)), &json!({ "text": keys }));
    }

    /// Moves a slider, or chooses an option.
    pub(crate) fn set(&self, id: &str, value: &str) {
        let script = "const [id, value] = arguments, field = document.getElementById(id); field.value = value; \
                      for (const name of ['input', 'change']) field.dispatchEvent(new Event(name, { bubbles: true }));";
        self.run(script, &json!([id, value]));
    }

    #[track_caller]
    pub(crate) fn text(&self, id: &str) -> String {
        self.value(&format!("document.getElementById({id:?}).textContent")).as_str().unwrap().to_owned()
    }

    /// A number that tells apart what a canvas shows.
    fn drawing(&self, id: &str) -> Value {
        let script = "const file = document.getElementById(arguments[0]).toDataURL(); let sum = 7; \
                      for (let at = 0; at < file.length; at++) sum = (sum * 31 + file.charCodeAt(at)) % 1000000007; return sum;";
        self.run(script, &json!([id]))
    }

    /// Does something, and waits until a canvas shows something else.
    #[track_caller]
    pub(crate) fn redraws<T>(&self, id: &str, act: impl FnOnce() -> T) {
        let before = self.drawing(id);
        act();
        let began = Instant::now();
        while self.drawing(id) == before {
            assert!(began.elapsed() < TIMEOUT, "#{id} shows the same as before");
            thread::sleep(GLANCE);
        }
    }

    /// Emulates a screen: its width and height in pixels, light or dark.
    pub(crate) fn screen(&self, width: u32, height: u32, scheme: &str) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.tell_browser("Emulation.setDeviceMetricsOverride", &size);
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.tell_browser("Emulation.setEmulatedMedia", &features);
    }

    /// A command of the browser's own protocol.
    pub(crate) fn tell_browser(&self, command: &str, parameters: &Value) -> Value {
        self.must("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    fn log(&self, kind: &str) -> Vec<Value> {
        let Value::Array(lines) = self.must("/se/log", &json!({ "type": kind })) else { panic!("no log {kind}") };
        lines
    }

    fn was_well_behaved(&self, expected: &[&str]) {
        for line in self.log("browser") {
            let message = line["message"].as_str().unwrap();
            assert!(expected.iter().any(|text| message.contains(text)), "on the console: {line}");
        }
        let mut asked = 0;
        for line in self.log("performance") {
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

impl Drop for Page {
    fn drop(&mut self) {
        // Ends the browser.
        let _ = self.agent.delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
