//! Tests the rules of what apps may send and who may use the gateway: rules, tokens, quotas,
//! `before_accept`, limits of requests and TLS; on `fanwise serve` with the embedded engine, and
//! for jobs over AMQP on servers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::HeaderMap;
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fanwise::domain::ids::JobId;
use fanwise::http::client::{Client, ClientSettings};
use fanwise::http::tls::pinned;
use fanwise::ports::Request;
use fanwise_mock_im::{MockHandle, Settings, Version};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::DropGuard;

use crate::support::mock;
use crate::support::process::{Finished, Process, fanwise, run_fanwise};
use crate::support::scratch::Scratch;
use crate::support::signature::assert_signed;
use crate::support::wait::until;
use crate::support::world::{BOUND, Plan, free_port, users};

/// A `fanwise serve` on the embedded engine, with a mock to send to.
struct Place {
    mock: MockHandle,
    config: PathBuf,
    port: u16,
    admin: u16,
    client: Client,
    scheme: &'static str,
    _scratch: Scratch,
    _stop: DropGuard,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Place {
    /// `gateway` is added to that section, `apps` are further tables.
    async fn new(name: &str, gateway: &str, apps: &str) -> Self {
        Self::within(Scratch::new(name), gateway, apps).await
    }

    async fn within(scratch: Scratch, gateway: &str, apps: &str) -> Self {
        let (address, handle, stop) = mock::start(Settings {
            wukongim: Version::V3,
            ..Settings::default()
        })
        .await;
        let (port, admin) = (free_port(), free_port());
        let config = format!(
            r#"
            [embedded]
            dir = {:?}
            [gateway]
            listen = "127.0.0.1:{port}"
            {gateway}
            [admin]
            listen = "127.0.0.1:{admin}"
            [targets.im]
            type = "wukongim"
            version = "v3"
            sender = "news"
            url = "http://{address}"
            manager_url = "http://{address}"
            call_timeout = "3s"
            [targets.other]
            type = "wukongim"
            version = "v3"
            sender = "news"
            url = "http://{address}"
            call_timeout = "3s"
            {apps}
            "#,
            scratch.path().join("data"),
        );
        Self {
            mock: handle,
            config: scratch.write("fanwise.toml", config),
            port,
            admin,
            client: Client::new(ClientSettings::defaults()),
            scheme: "http",
            _scratch: scratch,
            _stop: stop.drop_guard(),
        }
    }

    async fn serve(&self) -> Process {
        let arguments = ["serve", "--config", self.config.to_str().unwrap()];
        let mut process = fanwise(&arguments, &[]);
        process
            .until_prints("ready: jobs are taken", Duration::from_secs(60))
            .await;
        process
    }

    async fn run(&self, arguments: &[&str]) -> Finished {
        let arguments = [arguments, &["--config", self.config.to_str().unwrap()]].concat();
        run_fanwise(&arguments, &[], b"", BOUND).await
    }

    async fn ask(&self, method: &str, path: &str, token: Option<&str>, body: &Value) -> Answer {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(bearer.iter().map(|it| ("authorization", it.as_str())));
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        self.send(method, path, &headers, body).await
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        given: &[(&'static str, &str)],
        body: String,
    ) -> Answer {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.insert(*name, value.parse().unwrap());
        }
        let uri = format!("{}://127.0.0.1:{}{path}", self.scheme, self.port);
        let request = Request {
            method: method.parse().unwrap(),
            uri: uri.parse().unwrap(),
            headers,
            body: body.into(),
        };
        let reply = self.client.send(request, BOUND).await.unwrap();
        Answer {
            status: reply.status,
            headers: reply.headers,
            body: serde_json::from_slice(&reply.body).unwrap_or_default(),
        }
    }

    async fn metrics(&self) -> String {
        let uri = format!("http://127.0.0.1:{}/metrics", self.admin);
        let request = Request {
            method: "GET".parse().unwrap(),
            uri: uri.parse().unwrap(),
            headers: HeaderMap::new(),
            body: "".into(),
        };
        let reply = self.client.send(request, BOUND).await.unwrap();
        String::from_utf8(reply.body.to_vec()).unwrap()
    }

    async fn get(&self, path: &str, token: Option<&str>) -> Answer {
        self.ask("GET", path, token, &Value::Null).await
    }

    async fn submit(&self, token: Option<&str>, job: &Value) -> Answer {
        self.ask("POST", "/v1/jobs", token, job).await
    }

    async fn completed(&self, job: &str, token: Option<&str>) -> Value {
        let path = format!("/v1/jobs/{job}");
        until(&format!("completion of {job}"), BOUND, async || {
            let answer = self.get(&path, token).await;
            (answer.body["state"] == "completed").then_some(answer.body)
        })
        .await
    }

    /// The text that a recipient got, if it got exactly one message.
    fn text_for(&self, recipient: &str) -> Option<String> {
        assert!(self.mock.is_complete());
        let accepted = self.mock.accepted();
        let mut of = accepted
            .iter()
            .filter(|entry| entry.recipient == recipient && !entry.replay);
        let entry = of.next()?;
        assert!(of.next().is_none(), "{recipient} got two");
        let payload: Value = serde_json::from_str(&entry.payload).unwrap();
        payload["content"].as_str().map(str::to_owned)
    }
}

async fn end(mut process: Process) -> String {
    process.terminate();
    let status = process.wait(Duration::from_secs(30)).await;
    let log = process.stderr();
    assert_eq!(status.code(), Some(0), "{log}");
    log
}

fn job(key: &str, users: &[String]) -> Value {
    json!({
        "v": 1, "client_msg_no": key, "app": "shop", "sender": "news",
        "audience": {"users": users}, "message": {"type": "text", "text": "hello"},
    })
}

/// Users of a list, different for each name.
fn list(name: &str, count: usize) -> Vec<String> {
    let users = users(count);
    users.iter().map(|user| format!("{name}-{user}")).collect()
}

fn fields(problem: &Value) -> Vec<&str> {
    let problems = problem["problems"].as_array().expect("problems");
    let fields = problems.iter().map(|it| it["field"].as_str().unwrap());
    fields.collect()
}

/// A job that its app may not send is refused immediately, with every rule that it breaks.
#[tokio::test(flavor = "multi_thread")]
async fn an_app_sends_only_what_it_may() {
    let apps = "[apps.shop]\nsenders = [\"news\"]\ntargets = [\"im\"]\n\
                audiences = [\"users\"]\nrecipients_max = 3";
    let place = Place::new("permit-rules", "", apps).await;
    let process = place.serve().await;
    let mut wrong = job("wrong", &[]);
    wrong["sender"] = json!("boss");
    wrong["target"] = json!("other");
    wrong["audience"] = json!({"groups": list("g", 4)});
    let refused = place.submit(None, &wrong).await;
    assert_eq!(refused.status, 403, "{}", refused.body);
    assert_eq!(
        fields(&refused.body),
        ["sender", "target", "audience.groups", "audience.groups"]
    );
    let mut all = job("all", &[]);
    all["target"] = json!("im");
    all["audience"] = json!({"all": true});
    all["confirm_all"] = json!(true);
    let refused = place.submit(None, &all).await;
    assert_eq!(refused.status, 403, "{}", refused.body);
    assert_eq!(fields(&refused.body), ["audience.all"]);

    let mut right = job("right", &list("a", 2));
    right["target"] = json!("im");
    let accepted = place.submit(None, &right).await;
    assert_eq!(accepted.status, 202, "{}", accepted.body);
    let id = accepted.body["job"].as_str().unwrap().to_owned();
    place.completed(&id, None).await;
    // A further list of the same job adds to the first one.
    right["audience"] = json!({"users": list("b", 2)});
    let refused = place.submit(None, &right).await;
    assert_eq!(refused.status, 403, "{}", refused.body);
    assert_eq!(fields(&refused.body), ["audience.users"]);
    right["audience"] = json!({"users": list("b", 1)});
    let extended = place.submit(None, &right).await;
    assert_eq!(extended.status, 202, "{}", extended.body);
    let three = until("three recipients", BOUND, async || {
        let record = place.completed(&id, None).await;
        (record["accounts"]["total"] == 3).then_some(record)
    });
    assert_eq!(three.await["accounts"]["sent"], 3);
    end(process).await;
}

/// Gateway and worker both count a list, and together they count it once.
#[tokio::test(flavor = "multi_thread")]
async fn a_daily_quota_counts_each_list_once() {
    let apps = "[apps.shop]\ntarget = \"im\"\ndaily_recipients = 5";
    let place = Place::new("permit-quota", "", apps).await;
    let process = place.serve().await;
    let three = job("three", &list("a", 3));
    for status in [202, 200] {
        let accepted = place.submit(None, &three).await;
        assert_eq!(accepted.status, status, "{}", accepted.body);
        let id = accepted.body["job"].as_str().unwrap().to_owned();
        place.completed(&id, None).await;
    }
    let too_many = place.submit(None, &job("more", &list("b", 3))).await;
    assert_eq!(too_many.status, 403, "{}", too_many.body);
    let what = too_many.body["problems"][0]["what"].as_str().unwrap();
    assert!(what.contains("has 2 of 5 left until 00:00 UTC"), "{what}");
    let two = place.submit(None, &job("two", &list("c", 2))).await;
    assert_eq!(two.status, 202, "{}", two.body);
    let one = place.submit(None, &job("one", &list("d", 1))).await;
    assert_eq!(one.status, 403, "{}", one.body);
    end(process).await;
}

/// A token of an app allows submitting and reading the jobs of that app, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_the_jobs_of_its_app() {
    let apps = "[apps.shop]\ntarget = \"im\"\ntoken = \"shop-s3cret\"\n\
                [apps.bank]\ntarget = \"im\"\ntoken = \"bank-s3cret\"";
    let place = Place::new("permit-tokens", "token = \"all-s3cret\"", apps).await;
    let process = place.serve().await;
    let (shop, bank, all) = (Some("shop-s3cret"), Some("bank-s3cret"), Some("all-s3cret"));
    let accepted = place.submit(shop, &job("mine", &list("a", 1))).await;
    assert_eq!(accepted.status, 202, "{}", accepted.body);
    let id = accepted.body["job"].as_str().unwrap().to_owned();
    place.completed(&id, shop).await;

    // Another app's token neither submits for this app nor sees its jobs.
    let refused = place.submit(bank, &job("theirs", &list("b", 1))).await;
    assert_eq!(refused.status, 403, "{}", refused.body);
    assert_eq!(fields(&refused.body), ["app"]);
    for path in [
        format!("/v1/jobs/{id}"),
        format!("/v1/jobs/{id}/verification"),
        format!("/v1/jobs/{id}/recipients/a-u0"),
        "/v1/jobs/mine".to_owned(),
    ] {
        let seen = place.get(&path, shop).await;
        assert_eq!(seen.status, 200, "{path}: {}", seen.body);
        let hidden = place.get(&path, bank).await;
        assert_eq!(hidden.status, 404, "{path}: {}", hidden.body);
    }
    let listed = |answer: Answer| answer.body["jobs"].as_array().map(Vec::len);
    assert_eq!(listed(place.get("/v1/jobs", shop).await), Some(1));
    assert_eq!(listed(place.get("/v1/jobs", bank).await), Some(0));
    assert_eq!(listed(place.get("/v1/jobs", all).await), Some(1));
    assert_eq!(place.get("/v1/jobs?app=shop", bank).await.status, 403);
    assert_eq!(place.get("/v1/dead", bank).await.status, 200);

    // An app steers its own jobs; what concerns others needs a token with all rights.
    let cancel = format!("/v1/jobs/{id}:pause");
    let late = place.ask("POST", &cancel, shop, &Value::Null).await;
    assert_eq!(late.status, 409, "it is completed: {}", late.body);
    let hidden = place.ask("POST", &cancel, bank, &Value::Null).await;
    assert_eq!(hidden.status, 404, "{}", hidden.body);
    let all_of = json!({"app": "shop"});
    let refused = place.ask("POST", "/v1/jobs:cancel", bank, &all_of).await;
    assert_eq!(refused.status, 403, "{}", refused.body);
    let resolve = format!("/v1/jobs/{id}/uncertain:resolve");
    let refused = place.ask("POST", &resolve, shop, &Value::Null).await;
    assert_eq!(refused.status, 403, "{}", refused.body);
    assert_eq!(place.get("/v1/rejected", shop).await.status, 403);
    for token in [None, Some("wrong")] {
        for path in ["/v1/jobs", "/v1/limits", "/nothing/here"] {
            assert_eq!(place.get(path, token).await.status, 401, "{path}");
        }
        assert_eq!(place.submit(token, &job("x", &[])).await.status, 401);
    }
    assert_eq!(place.get("/livez", None).await.status, 200);
    let log = end(process).await;
    assert!(!log.contains("s3cret"), "{log}");
}

/// A job without an app belongs to the app of its token, however its list comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_names_no_app_is_one_of_its_token() {
    let apps = "[apps.default]\ntarget = \"im\"\n\
                [apps.shop]\ntarget = \"im\"\ntoken = \"shop-s3cret\"";
    let place = Place::new("permit-own-app", "token = \"all-s3cret\"", apps).await;
    let process = place.serve().await;
    let (shop, all) = (Some("shop-s3cret"), Some("all-s3cret"));
    let unnamed = |key: &str, users: &[String]| {
        let mut job = job(key, users);
        job.as_object_mut().unwrap().remove("app");
        job
    };
    let plain = place.submit(shop, &unnamed("plain", &list("p", 1))).await;
    let mut spec = unnamed("listed", &[]);
    spec.as_object_mut().unwrap().remove("audience");
    let spec = spec.to_string();
    let headers = [
        ("authorization", "Bearer shop-s3cret"),
        ("content-type", "text/plain"),
        ("fanwise-job-spec", spec.as_str()),
    ];
    let listed = place.send("POST", "/v1/jobs", &headers, "l-u0\n".to_owned());
    for (key, accepted) in [("plain", plain), ("listed", listed.await)] {
        assert_eq!(accepted.status, 202, "{}", accepted.body);
        let id = JobId::of("shop", key).to_string();
        assert_eq!(accepted.body["job"], id);
        let record = place.completed(&id, shop).await;
        assert_eq!(record["accounts"]["sent"], 1, "{record}");
    }
    // It is the same job as one that names the app.
    let again = place.submit(shop, &job("plain", &list("p", 1))).await;
    assert_eq!(again.status, 200, "{}", again.body);
    // Another app is refused, with both names.
    let mut other = unnamed("other", &list("o", 1));
    other["app"] = json!("default");
    let refused = place.submit(shop, &other).await;
    assert_eq!(refused.status, 403, "{}", refused.body);
    assert_eq!(refused.body["kind"], "forbidden");
    let what = refused.body["problems"][0]["what"].as_str().unwrap();
    assert!(
        what.contains("\"default\"") && what.contains("\"shop\""),
        "{what}"
    );
    // The token for everything belongs to no app.
    let of_default = place.submit(all, &unnamed("of-all", &list("d", 1))).await;
    assert_eq!(
        of_default.body["job"],
        JobId::of("default", "of-all").to_string()
    );
    end(process).await;
}

/// An endpoint for the tests of `before_accept`: the requests it got; its answer depends on the
/// text.
#[derive(Clone, Default)]
struct Moderator(Arc<Mutex<Vec<Value>>>);

impl Moderator {
    async fn start(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = self.clone();
        let decide = move |headers: HeaderMap, body: String| {
            let asked = asked.clone();
            async move { asked.decide(&headers, &body) }
        };
        let routes = Router::new().route("/ask", post(decide));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        address
    }

    fn decide(&self, headers: &HeaderMap, body: &str) -> String {
        let header = |name: &str| headers[name].to_str().unwrap();
        assert_signed(b"m0derator", header, body.as_bytes());
        let question: Value = serde_json::from_str(body).unwrap();
        self.0.lock().unwrap().push(question.clone());
        match question["message"]["text"].as_str() {
            Some("spam") => json!({"decision": "deny", "code": "spam", "text": "no spam here"}),
            Some("damn") => {
                json!({"decision": "change", "message": {"type": "text", "text": "d***"}})
            }
            Some("odd") => json!({"decision": "perhaps"}),
            _ => json!({"decision": "allow"}),
        }
        .to_string()
    }
}

/// `before_accept` accepts jobs, refuses them, or changes their message, before they are durable.
#[tokio::test(flavor = "multi_thread")]
async fn before_accept_decides() {
    let moderator = Moderator::default();
    let address = moderator.start().await;
    let gone = free_port();
    let apps = format!(
        "[apps.shop]\ntarget = \"im\"\n[apps.shop.before_accept]\nurl = \"http://{address}/ask\"\n\
         secret = \"m0derator\"\n\
         [apps.shut]\ntarget = \"im\"\n[apps.shut.before_accept]\nurl = \"http://127.0.0.1:{gone}/\"\n\
         [apps.lax]\ntarget = \"im\"\n[apps.lax.before_accept]\nurl = \"http://127.0.0.1:{gone}/\"\n\
         on_failure = \"allow\""
    );
    let place = Place::new("permit-before", "", &apps).await;
    let process = place.serve().await;
    let with = |key: &str, app: &str, text: &str| {
        let mut job = job(key, &[format!("to-{key}")]);
        job["app"] = json!(app);
        job["message"]["text"] = json!(text);
        job
    };
    let fine = place.submit(None, &with("fine", "shop", "hello")).await;
    assert_eq!(fine.status, 202, "{}", fine.body);
    let question = moderator.0.lock().unwrap().pop().unwrap();
    assert_eq!(
        question,
        json!({
            "job": JobId::of("shop", "fine").to_string(), "app": "shop", "client_msg_no": "fine",
            "sender": "news", "target": "im", "audience": "users", "recipients": 1,
            "message": {"type": "text", "text": "hello"},
        })
    );

    let spam = place.submit(None, &with("spam", "shop", "spam")).await;
    assert_eq!(spam.status, 403, "{}", spam.body);
    assert_eq!(spam.body["code"], "spam");
    assert_eq!(spam.body["detail"], "no spam here");
    let unknown = place.get("/v1/jobs/spam?app=shop", None).await;
    assert_eq!(unknown.status, 404, "{}", unknown.body);

    let damn = place.submit(None, &with("damn", "shop", "damn")).await;
    assert_eq!(damn.status, 202, "{}", damn.body);
    place
        .completed(&JobId::of("shop", "damn").to_string(), None)
        .await;
    // The same change again makes the same job, which exists already.
    let again = place.submit(None, &with("damn", "shop", "damn")).await;
    assert_eq!(again.status, 200, "{}", again.body);

    let odd = place.submit(None, &with("odd", "shop", "odd")).await;
    assert_eq!(odd.status, 503, "{}", odd.body);
    assert!(odd.headers.contains_key("retry-after"));
    let shut = place.submit(None, &with("shut", "shut", "hello")).await;
    assert_eq!(shut.status, 503, "{}", shut.body);
    let lax = place.submit(None, &with("lax", "lax", "hello")).await;
    assert_eq!(lax.status, 202, "{}", lax.body);

    for (key, app) in [("fine", "shop"), ("damn", "shop"), ("lax", "lax")] {
        place
            .completed(&JobId::of(app, key).to_string(), None)
            .await;
    }
    assert_eq!(place.text_for("to-fine").as_deref(), Some("hello"));
    assert_eq!(place.text_for("to-damn").as_deref(), Some("d***"));
    assert_eq!(place.text_for("to-lax").as_deref(), Some("hello"));
    for refused in ["to-spam", "to-odd", "to-shut"] {
        assert_eq!(place.text_for(refused), None);
    }
    let metrics = place.metrics().await;
    for (result, count) in [("allow", 1), ("deny", 1), ("change", 2), ("failed", 3)] {
        let line = format!("fanwise_before_accept_total{{result=\"{result}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    let line = "fanwise_before_accept_duration_seconds_count 7\n";
    assert!(metrics.contains(line), "{metrics}");
    let log = end(process).await;
    assert!(log.contains("before_accept has not decided"), "{log}");
    assert!(!log.contains("m0derator"), "{log}");
}

/// Submits a job, and answers the request to the endpoint after `meanwhile` is done.
async fn decided(
    place: &Place,
    asked: &mut mpsc::Receiver<(Value, oneshot::Sender<Value>)>,
    job: &Value,
    meanwhile: impl Future<Output = ()>,
) -> (Answer, Value) {
    let question = async {
        let (question, answer) = asked.recv().await.unwrap();
        meanwhile.await;
        answer.send(json!({"decision": "allow"})).unwrap();
        question
    };
    tokio::join!(place.submit(None, job), question)
}

/// `before_accept` gets everything that is rendered, and exactly that is sent, even if the stored
/// message is replaced before its answer.
#[tokio::test(flavor = "multi_thread")]
async fn before_accept_sees_what_goes_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ask, mut asked) = mpsc::channel::<(Value, oneshot::Sender<Value>)>(1);
    let decide = move |body: String| {
        let ask = ask.clone();
        async move {
            let (answer, answered) = oneshot::channel();
            let question = serde_json::from_str(&body).unwrap();
            ask.send((question, answer)).await.unwrap();
            answered.await.unwrap().to_string()
        }
    };
    let routes = Router::new().route("/ask", post(decide));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    let apps = format!(
        "[apps.shop]\ntarget = \"im\"\n[apps.shop.before_accept]\nurl = \"http://{address}/ask\"\n\
         timeout = \"1m\""
    );
    let place = Place::new("permit-seen", "", &apps).await;
    let process = place.serve().await;
    let put = async |text: &str| {
        let body = json!({"type": "text", "text": text});
        let put = place.ask("PUT", "/v1/templates/hello?app=shop", None, &body);
        assert_eq!(put.await.status, 200);
    };
    let with = |key: &str, message: Value, users: Value| {
        let mut job = job(key, &[]);
        job["message"] = message;
        job["audience"]["users"] = users;
        job
    };
    let nothing = async || {};

    // The distinct values of recipients, without the recipients.
    let users = json!([
        {"id": "a", "vars": {"name": "Ann"}}, {"id": "b", "vars": {"name": "Bob"}},
        {"id": "c", "vars": {"name": "Ann"}},
    ]);
    let message = json!({"type": "text", "text": "Hi {{ name }}"});
    let personal = with("vars", message.clone(), users);
    let (accepted, question) = decided(&place, &mut asked, &personal, nothing()).await;
    assert_eq!(accepted.status, 202, "{}", accepted.body);
    assert_eq!(question["vars"], json!([{"name": "Ann"}, {"name": "Bob"}]));
    assert_eq!(question.get("vars_left_out"), None);
    assert!(!question.to_string().contains("\"a\""), "{question}");

    // As many values as fit.
    let of = |number: usize| json!({"id": format!("n{number}"), "vars": {"name": format!("{number:01000}")}});
    let many = with("many", message, (0..70).map(of).collect());
    let (accepted, question) = decided(&place, &mut asked, &many, nothing()).await;
    assert_eq!(accepted.status, 202, "{}", accepted.body);
    let shown = question["vars"].as_array().unwrap().len();
    assert!((60..70).contains(&shown), "{shown}");
    assert_eq!(question["vars_left_out"], 70 - shown);

    // The message is replaced before the endpoint answers.
    put("first").await;
    let hello = json!({"template": "hello"});
    let pinned = with("pinned", hello.clone(), json!(["pinned"]));
    let (accepted, question) = decided(&place, &mut asked, &pinned, put("second")).await;
    assert_eq!(accepted.status, 202, "{}", accepted.body);
    assert_eq!(question["stored"]["text"], "first");
    // Another job gets the new version, unless it names the old one.
    let new = with("new", hello, json!(["new"]));
    let (_, question) = decided(&place, &mut asked, &new, nothing()).await;
    assert_eq!(question["stored"]["text"], "second");
    let old = with("old", json!({"template": "hello@1"}), json!(["old"]));
    let (_, question) = decided(&place, &mut asked, &old, nothing()).await;
    assert_eq!(question["stored"]["text"], "first");
    let gone = with("gone", json!({"template": "hello@9"}), json!(["gone"]));
    let (refused, question) = decided(&place, &mut asked, &gone, nothing()).await;
    assert_eq!(refused.status, 400, "{}", refused.body);
    assert_eq!(question.get("stored"), None);
    for (key, text) in [("pinned", "first"), ("new", "second"), ("old", "first")] {
        let id = JobId::of("shop", key).to_string();
        place.completed(&id, None).await;
        assert_eq!(place.text_for(key).as_deref(), Some(text), "{key}");
    }
    // A repeated submit is the same job, and shows the version that it was accepted with.
    let (again, question) = decided(&place, &mut asked, &pinned, nothing()).await;
    assert_eq!(again.status, 200, "{}", again.body);
    assert_eq!(question["stored"]["text"], "first");
    end(process).await;
}

/// Uploads and drop-in calls obey the same rules and are sent to `before_accept` in the same way.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_and_drop_in_calls_are_held_to_the_rules() {
    let moderator = Moderator::default();
    let address = moderator.start().await;
    let apps = format!(
        "[apps.shop]\ntarget = \"im\"\nrecipients_max = 3\n\
         [apps.shop.before_accept]\nurl = \"http://{address}/ask\"\nsecret = \"m0derator\"\n\
         [apps.shop.wukongim]\nsecret = \"d00r\""
    );
    let place = Place::new("permit-ways", "token = \"all\"", &apps).await;
    let process = place.serve().await;
    let upload = async |key: &str, text: &str, count: usize| {
        let mut spec = job(key, &[]);
        spec.as_object_mut().unwrap().remove("audience");
        spec["message"]["text"] = json!(text);
        let spec = spec.to_string();
        let headers = [
            ("authorization", "Bearer all"),
            ("content-type", "text/plain"),
            ("fanwise-job-spec", spec.as_str()),
        ];
        let body = list(key, count).join("\n");
        place.send("POST", "/v1/jobs", &headers, body).await
    };
    let refused = upload("long", "hello", 4).await;
    assert_eq!(refused.status, 403, "{}", refused.body);
    assert_eq!(fields(&refused.body), ["audience.users"]);
    let refused = upload("spam", "spam", 1).await;
    assert_eq!(refused.status, 403, "{}", refused.body);
    assert_eq!(refused.body["code"], "spam");
    let accepted = upload("list", "damn", 3).await;
    assert_eq!(accepted.status, 202, "{}", accepted.body);
    let question = moderator.0.lock().unwrap().pop().unwrap();
    assert_eq!(question["recipients"], 3);
    let id = accepted.body["job"].as_str().unwrap();
    place.completed(id, Some("all")).await;
    for user in list("list", 3) {
        assert_eq!(place.text_for(&user).as_deref(), Some("d***"), "{user}");
    }

    let call = async |text: &str, count: usize| {
        let payload = json!({"type": 1, "content": text}).to_string();
        let body = json!({
            "from_uid": "news", "subscribers": list(text, count),
            "payload": STANDARD.encode(payload),
        });
        let headers = [("content-type", "application/json"), ("token", "d00r")];
        let body = body.to_string();
        place
            .send("POST", "/message/sendbatch", &headers, body)
            .await
    };
    let nobody = [("content-type", "application/json")];
    let stranger = place.send("POST", "/message/sendbatch", &nobody, "{}".to_owned());
    let stranger = stranger.await;
    assert_eq!((stranger.status, stranger.body), (401, Value::Null));
    assert_eq!(call("many", 4).await.status, 403);
    assert_eq!(call("spam", 1).await.status, 403);
    assert_eq!(call("fine", 3).await.status, 200);
    for user in list("fine", 3) {
        assert_eq!(place.text_for(&user).as_deref(), Some("fine"), "{user}");
    }
    for refused in ["long-u0", "spam-u0", "many-u0"] {
        assert_eq!(place.text_for(refused), None);
    }
    end(process).await;
}

/// An app above its limit learns when to come again; others are not delayed.
#[tokio::test(flavor = "multi_thread")]
async fn requests_of_an_app_are_limited() {
    let apps = "[apps.shop]\ntarget = \"im\"\ntoken = \"shop\"\nrequest_rate = \"1/min burst 2\"\n\
                [apps.bank]\ntarget = \"im\"\ntoken = \"bank\"";
    let place = Place::new("permit-requests", "token = \"all\"", apps).await;
    let process = place.serve().await;
    assert_eq!(place.get("/v1/jobs", Some("shop")).await.status, 200);
    let accepted = place.submit(Some("shop"), &job("a", &list("a", 1))).await;
    assert_eq!(accepted.status, 202, "{}", accepted.body);
    let refused = place.submit(Some("shop"), &job("b", &list("b", 1))).await;
    assert_eq!(refused.status, 429, "{}", refused.body);
    let after: u64 = refused.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=60).contains(&after), "{after}");
    // Every request for the app counts, whichever token it has.
    let refused = place.submit(Some("all"), &job("c", &list("c", 1))).await;
    assert_eq!(refused.status, 429, "{}", refused.body);
    for _ in 0..5 {
        assert_eq!(place.get("/v1/jobs", Some("bank")).await.status, 200);
        assert_eq!(place.get("/v1/jobs", Some("all")).await.status, 200);
    }
    end(process).await;
}

/// A certificate and key for a test, made by openssl.
fn certificate(folder: &Scratch) -> (PathBuf, PathBuf) {
    let (certificate, key) = (folder.path().join("crt.pem"), folder.path().join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
        .args(["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=fanwise.test", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl");
    assert!(made.status.success(), "{made:?}");
    (certificate, key)
}

/// TLS: HTTP/1.1 and HTTP/2 as the client asks, for Fanwise's own commands too; no plain text.
#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_speaks_tls() {
    let scratch = Scratch::new("permit-tls");
    let (certificate, key) = certificate(&scratch);
    let gateway = format!("tls_certificate = {certificate:?}\ntls_key = {key:?}");
    let apps = "[apps.shop]\ntarget = \"im\"";
    let mut place = Place::within(scratch, &gateway, apps).await;
    let process = place.serve().await;
    let trusting = pinned(&certificate).unwrap();

    let unencrypted = Request {
        method: "GET".parse().unwrap(),
        uri: format!("http://127.0.0.1:{}/livez", place.port)
            .parse()
            .unwrap(),
        headers: HeaderMap::new(),
        body: "".into(),
    };
    assert!(place.client.send(unencrypted, BOUND).await.is_err());

    for protocol in ["h2", "http/1.1"] {
        let mut config = trusting.clone();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = TcpStream::connect(("127.0.0.1", place.port)).await.unwrap();
        let name = "fanwise.test".try_into().unwrap();
        let stream = connector.connect(name, stream).await.unwrap();
        let (_, session) = stream.get_ref();
        assert_eq!(session.alpn_protocol(), Some(protocol.as_bytes()));
    }

    place.scheme = "https";
    place.client = Client::new(ClientSettings {
        tls: Some(Arc::new(trusting)),
        ..ClientSettings::defaults()
    });
    let accepted = place.submit(None, &job("tls", &list("a", 1))).await;
    assert_eq!(accepted.status, 202, "{}", accepted.body);
    let id = accepted.body["job"].as_str().unwrap().to_owned();
    place.completed(&id, None).await;
    let shown = place.run(&["job", "show", &id, "--json"]).await;
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["state"], "completed");
    end(process).await;
}

/// Whether a connection succeeds that trusts only this certificate.
async fn trusts(port: u16, certificate: &Path) -> bool {
    let connector = tokio_rustls::TlsConnector::from(Arc::new(pinned(certificate).unwrap()));
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = "fanwise.test".try_into().unwrap();
    connector.connect(name, stream).await.is_ok()
}

/// A renewed certificate is served without a restart, and a damaged one is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_served() {
    let (first, second) = (Scratch::new("permit-first"), Scratch::new("permit-second"));
    let (old, new) = (certificate(&first), certificate(&second));
    let served = Scratch::new("permit-renew");
    let (crt, key) = (served.path().join("crt.pem"), served.path().join("key.pem"));
    std::fs::copy(&old.0, &crt).unwrap();
    std::fs::copy(&old.1, &key).unwrap();
    let gateway = format!("tls_certificate = {crt:?}\ntls_key = {key:?}");
    let place = Place::within(served, &gateway, "[apps.shop]\ntarget = \"im\"").await;
    let mut process = place.serve().await;
    assert!(trusts(place.port, &old.0).await);
    assert!(!trusts(place.port, &new.0).await);

    // With only one file replaced they do not match, and nothing changes.
    std::fs::copy(&new.0, &crt).unwrap();
    process
        .until_prints("the certificate that was read last is still served", BOUND)
        .await;
    assert!(trusts(place.port, &old.0).await);
    std::fs::copy(&new.1, &key).unwrap();
    until("the new certificate to be served", BOUND, async || {
        trusts(place.port, &new.0).await.then_some(())
    })
    .await;
    assert!(!trusts(place.port, &old.0).await);
    let log = end(process).await;
    assert!(
        log.contains("another certificate is served from now on"),
        "{log}"
    );
}

/// A gateway without credentials does not start, unless the configuration allows that.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_without_credentials_is_refused_or_warned_of() {
    let check = async |gateway: &str| {
        let place = Place::new("permit-check", gateway, "[apps.shop]\ntarget = \"im\"").await;
        place.run(&["config", "check"]).await
    };
    let on_loopback = check("").await;
    assert_eq!(on_loopback.code, Some(0), "{}", on_loopback.stderr);
    let warned = ": gateway.token: missing";
    assert!(
        on_loopback.stdout.contains(warned),
        "{}",
        on_loopback.stdout
    );
    let none = check("auth = \"none\"").await;
    assert_eq!(none.code, Some(0), "{}", none.stderr);
    let warned = ": gateway.auth: every client that reaches";
    assert!(none.stdout.contains(warned), "{}", none.stdout);

    // Only a gateway says so: a worker has none. Neither starts without a broker.
    let place = Place::new("permit-worker", "", "[apps.shop]\ntarget = \"im\"").await;
    for (command, says_so) in [("gateway", true), ("worker", false)] {
        let ended = place.run(&[command]).await;
        assert_eq!(ended.code, Some(78), "{}", ended.stderr);
        let found = ended.stderr.contains("gateway.token");
        assert_eq!(found, says_so, "{}", ended.stderr);
    }

    let place = Place::new("permit-closed", "auth = \"token\"", "").await;
    let refused = place.run(&["serve"]).await;
    assert_eq!(refused.code, Some(78), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("gateway.token"),
        "{}",
        refused.stderr
    );
    let tls = "tls_certificate = \"/nowhere/crt.pem\"\ntls_key = \"/nowhere/key.pem\"";
    let place = Place::new("permit-no-key", tls, "[apps.shop]\ntarget = \"im\"").await;
    let refused = place.run(&["serve"]).await;
    assert_eq!(refused.code, Some(78), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("/nowhere/crt.pem"),
        "{}",
        refused.stderr
    );
}

/// Jobs over AMQP obey the same rules: a job that breaks one is rejected with the reason.
#[tokio::test(flavor = "multi_thread")]
async fn rules_hold_for_jobs_over_amqp() {
    let Some(mut plan) = Plan::shared() else {
        return;
    };
    plan.more =
        "[apps.shop]\nsenders = [\"news\"]\nrecipients_max = 4\ndaily_recipients = 5".to_owned();
    let world = plan.start("permit").await;
    let worker = world.worker().await;
    let publish = async |job: &Value| world.publish_raw(job.to_string().as_bytes()).await;
    let reasons = async |count: usize| {
        until("rejected jobs", BOUND, async || {
            let rejected = world.json(&["dead", "rejected"]).await;
            let rejected = rejected.as_array()?;
            (rejected.len() == count).then(|| {
                let reasons = rejected.iter().map(|it| it["reason"].as_str());
                reasons.map(|it| it.unwrap().to_owned()).collect::<Vec<_>>()
            })
        })
        .await
    };
    let first = list("a", 3);
    // Twice: a repeat counts once.
    for _ in 0..2 {
        publish(&job("first", &first)).await;
    }
    world
        .completed(&JobId::of("shop", "first").to_string())
        .await;
    let mut boss = job("boss", &list("b", 5));
    boss["sender"] = json!("boss");
    publish(&boss).await;
    let found = reasons(1).await;
    for part in ["sender: \"boss\" is not allowed", "at most 4 with one job"] {
        assert!(found[0].contains(part), "{part}: {found:?}");
    }
    publish(&job("many", &list("c", 3))).await;
    let found = reasons(2).await.join("\n");
    assert!(found.contains("has 2 of 5 left until 00:00 UTC"), "{found}");
    let mut all = job("all", &[]);
    all["audience"] = json!({"all": true});
    all["confirm_all"] = json!(true);
    publish(&all).await;
    let found = reasons(3).await.join("\n");
    assert!(found.contains("audience.all: is not allowed"), "{found}");
    let last = list("d", 2);
    publish(&job("last", &last)).await;
    world
        .completed(&JobId::of("shop", "last").to_string())
        .await;
    world.assert_once_each(first.iter().chain(&last));
    worker.drain().await;
    world.end().await;
}
