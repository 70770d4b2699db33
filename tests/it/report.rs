//! `--report`: one page that holds what a run found, whatever the names in the model.

use crate::onnx_quantize::small;
use crate::support::model::{self, Tensor};
use crate::support::{Random, Run, Workdir};

/// A name that would run, close an element or an attribute, end a string or hide what follows.
const HOSTILE: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u{0}\u{1b}[31m\u{202e}&lt;";

/// How it must be shown: control and invisible characters escaped first, then what HTML gives a meaning.
const SHOWN: &str =
    "&lt;script&gt;alert(1)&lt;&#x2f;script&gt;&quot;&#x27;&gt;&lt;img src=x onerror=alert(2)&gt;\\u{0}\\u{1b}[31m\\u{202e}&amp;lt;";

/// Elements without content.
const VOID: &[&str] = &["!doctype", "meta", "link", "br", "input"];

fn text(dir: &Workdir, name: &str) -> String {
    String::from_utf8(dir.read(name)).expect("reports are UTF-8")
}

/// Every element that begins ends, in order; attributes are quoted; nothing is loaded from elsewhere.
#[track_caller]
pub(crate) fn expect_well_formed(html: &str) {
    assert!(html.starts_with("<!doctype html>") && html.ends_with("</body></html>"), "{}", &html[..100]);
    assert!(!html.chars().any(|c| c.is_control() && c != '\n'), "control characters");
    let (mut open, mut rest) = (Vec::new(), html);
    while let Some(start) = rest.find('<') {
        let end = start + rest[start..].find('>').expect("tags end");
        let tag = &rest[start + 1..end];
        let name = tag.split([' ', '/', '\n']).find(|part| !part.is_empty()).unwrap_or_default();
        assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "</{name}>");
        } else if !VOID.contains(&name) && !tag.ends_with('/') {
            open.push(name);
            if ["script", "style"].contains(&name) {
                rest = &rest[rest.find(&format!("</{name}>")).expect("raw text ends")..];
            }
        }
    }
    assert!(open.is_empty(), "open at the end: {open:?}");
    assert!(!html.contains("http://") || html.matches("http://").count() == html.matches("xmlns=\"http://www.w3.org/2000/svg\"").count());
    assert!(!html.contains("https://") && !html.contains("url("), "links to others");
}

#[track_caller]
fn expect_sections(html: &str, ids: &[&str]) {
    for id in ids {
        assert!(html.contains(&format!("<section id=\"{id}\">")), "{id}");
    }
}

/// Weights of a few layers, one with a hostile name, and what is kept.
fn hostile() -> Workdir {
    let mut random = Random(5);
    let mut tensors: Vec<Tensor> = (0..4).map(|i| Tensor::weights(&format!("layer.{i}.weight"), &[32, 64], &mut random)).collect();
    tensors.push(Tensor::weights(HOSTILE, &[32, 64], &mut random));
    tensors.push(Tensor::weights(&format!("bias {HOSTILE}"), &[32], &mut random));
    Workdir::with_model(&model::file(&tensors))
}

#[test]
fn quantize_writes_a_page_that_holds_what_the_run_did() {
    let dir = Workdir::with_fixture();
    dir.ok("quantize model.safetensors --exclude conv1* --report out.html");
    let html = text(&dir, "out.html");
    expect_well_formed(&html);
    expect_sections(&html, &["size", "tensors", "weights", "kept", "recipe", "command"]);
    for name in model::tensors(&dir.read("model.safetensors")).keys() {
        assert!(html.contains(&format!(">{name}</td>")), "{name}");
    }
    let sidecar = dir.json("model.int8.json");
    let db = sidecar["tensors"]["conv4.weight"]["error"]["sqnr_db"].as_f64().unwrap();
    let shown =
        ["1.2 MiB → ".into(), format!("{db:.1} dB"), "quantize model.safetensors --exclude &#x27;conv1*&#x27; --report out.html".into()];
    for shown in shown.iter().map(String::as_str).chain(["rank 1", "exclude = [&quot;conv1*&quot;]"]) {
        assert!(html.contains(shown), "{shown}");
    }
    // A chart of sizes, one of all tensors, and one for each of the quantized ones.
    assert_eq!(html.matches("<svg").count(), 2 + sidecar["tensors"].as_object().unwrap().len());
    let first = html.find(">conv4.weight</td>").unwrap();
    assert!(first < html.find(">stft_conv.weight</td>").unwrap(), "worst first");
}

#[test]
fn every_form_has_histograms_of_what_was_written() {
    let mut random = Random(9);
    let tensors: Vec<Tensor> =
        (0..2).map(|i| Tensor::weights(&format!("model.layers.{i}.mlp.up_proj.weight"), &[64, 128], &mut random)).collect();
    let dir = Workdir::with_model(&model::file(&tensors));
    dir.write("m/model.safetensors", model::file(&tensors));
    dir.write("m/config.json", r#"{"model_type": "llama"}"#);
    let cases = [
        "model.safetensors --weights int4 --granularity per-group:32 --asymmetric -o q.safetensors",
        "model.safetensors --granularity per-tensor --observer mse --sidecar other.json -o q.safetensors",
        "m --scheme w8a8 -o q",
        "m --scheme w4a16-asym -o q",
    ];
    for case in cases {
        dir.ok(&format!("quantize {case} --report out.html --force"));
        let html = text(&dir, "out.html");
        expect_well_formed(&html);
        // Outlines of the values after.
        assert_eq!(html.matches(" stroke=\"#D95F02\"").count(), 2, "{case}");
    }
    let dir = small();
    for options in
        ["", "--mode weight-only --weights int4 --granularity per-group:16", "--samples samples", "--samples samples --format qoperator"]
    {
        dir.ok(&format!("quantize model.onnx {options} -o q.onnx --report out.html --force"));
        let html = text(&dir, "out.html");
        expect_well_formed(&html);
        let quantized = dir.json("q.json")["tensors"].as_object().unwrap().len();
        assert_eq!(html.matches(" stroke=\"#D95F02\"").count(), quantized, "{options}");
        if options.contains("samples") {
            expect_sections(&html, &["activations", "activation-values"]);
            assert!(html.contains("class=\"track\"") && html.contains("on 6 samples"), "{options}");
        }
    }
}

#[test]
fn compare_and_inspect_write_pages_too() {
    let dir = Workdir::with_fixture();
    dir.ok("quantize model.safetensors");
    dir.ok("compare model.safetensors model.int8.safetensors --report compare.html");
    let html = text(&dir, "compare.html");
    expect_well_formed(&html);
    expect_sections(&html, &["size", "tensors", "weights", "recipe", "command"]);
    assert!(!html.contains("FAILS"));
    // What fails is worth a look more than anything.
    dir.fails("compare model.safetensors model.int8.safetensors --min-sqnr 35 --report failing.html", 3);
    let html = text(&dir, "failing.html");
    assert!(html.contains("<tr class=\"fails\">") && html.contains("2 fail"), "the rows are marked");
    dir.ok("inspect model.safetensors --report inspect.html");
    let html = text(&dir, "inspect.html");
    expect_well_formed(&html);
    expect_sections(&html, &["tensors", "weights", "command"]);
    dir.ok("inspect model.safetensors --headers --report headers.html");
    expect_well_formed(&text(&dir, "headers.html"));

    let dir = small();
    dir.ok("quantize model.onnx --samples samples -o q.onnx");
    dir.ok("compare model.onnx q.onnx --samples samples --layers --report out.html");
    let html = text(&dir, "out.html");
    expect_well_formed(&html);
    expect_sections(&html, &["size", "outputs", "values", "recipe"]);
}

#[test]
fn names_of_strangers_are_text() {
    let dir = hostile();
    dir.ok("quantize model.safetensors --report q.html");
    dir.ok("compare model.safetensors model.int8.safetensors --report c.html");
    dir.ok("inspect model.safetensors --report i.html");
    for name in ["q.html", "c.html", "i.html"] {
        let html = text(&dir, name);
        expect_well_formed(&html);
        assert_eq!(html.matches("<script").count(), 1, "{name}: the page's own");
        assert!(html.contains(&format!("<td>{SHOWN}</td>")) && !html.contains("<img"), "{name}");
    }
    // The command is one line that a shell reads as the same words.
    let arguments = ["inspect", "model.safetensors", "--report", "a'b <script>\n$(c)\\.html"];
    dir.run(arguments).expect(0);
    let html = text(&dir, arguments[3]);
    let shown = r"qtool inspect model.safetensors --report $&#x27;a\&#x27;b &lt;script&gt;\x0a$(c)\\.html&#x27;";
    assert!(html.contains(&format!("<pre tabindex=\"0\">{shown}</pre>")), "{}", &html[html.len() - 4000..]);
}

#[test]
fn two_thousand_tensors_make_a_small_page() {
    let mut random = Random(3);
    let names = |i: usize| format!("model.layers.{}.self_attention.projections.{}.weight", i / 16, i % 16);
    let mut tensors: Vec<Tensor> = (0..2000).map(|i| Tensor::weights(&names(i), &[32, 32], &mut random)).collect();
    tensors.extend((0..2000).map(|i| Tensor::weights(&names(i).replace("weight", "bias"), &[32], &mut random)));
    let dir = Workdir::with_model(&model::file(&tensors));
    dir.ok("quantize model.safetensors --report q.html");
    dir.ok("compare model.safetensors model.int8.safetensors --report c.html");
    dir.ok("inspect model.safetensors --report i.html");
    for name in ["q.html", "c.html", "i.html"] {
        let html = text(&dir, name);
        expect_well_formed(&html);
        assert!(html.contains(&names(1999)) && html.len() < 2_500_000, "{name}: {} bytes", html.len());
    }
}

#[test]
fn the_same_run_writes_the_same_page() {
    let dir = small();
    let mut pages = Vec::new();
    for _ in 0..2 {
        dir.ok("quantize model.onnx --samples samples -o q.onnx --report q.html --force");
        dir.ok("compare model.onnx q.onnx --samples samples --layers --report c.html --force");
        pages.push((dir.read("q.html"), dir.read("c.html")));
    }
    assert!(pages[0] == pages[1]);
    // Whatever else the machine does: but for the number of threads, which the command names.
    let page = |threads: usize| {
        dir.ok(&format!("quantize model.onnx --samples samples -o q.onnx --report q.html --force --threads {threads}"));
        text(&dir, "q.html").replace(&format!(" --threads {threads}"), "")
    };
    assert!(page(1) == page(3));
}

#[test]
fn a_page_takes_the_place_of_nothing_but_a_page() {
    let expect_kept = |dir: &Workdir, run: Run, what: &str| {
        run.expect_one_error();
        assert_eq!(dir.read("out.html"), b"mine", "{what}");
        assert!(!dir.exists("model.int8.safetensors"), "{what}: known before the work");
        dir.expect_no_temporaries();
    };
    let dir = Workdir::with_fixture();
    dir.write("out.html", "mine");
    for force in ["", " --force"] {
        for command in ["quantize model.safetensors", "inspect model.safetensors", "compare model.safetensors model.safetensors"] {
            let command = format!("{command} --report out.html{force}");
            expect_kept(&dir, dir.fails(&command, 2), &command);
        }
    }
    let model = dir.read("model.safetensors");
    for path in ["model.safetensors", "m.safetensors", "m.json"] {
        dir.fails(&format!("quantize model.safetensors -o m.safetensors --force --report {path}"), 2);
    }
    assert_eq!(dir.read("model.safetensors"), model);
    assert!(!dir.exists("m.safetensors"));

    dir.ok("inspect model.safetensors --report page.html");
    dir.fails("inspect model.safetensors --report page.html", 2);
    dir.ok("inspect model.safetensors --headers --report page.html --force");
    assert!(text(&dir, "page.html").contains("--headers"));
    dir.fails("quantize model.safetensors --report missing/page.html", 4);
    dir.run(["inspect", "model.safetensors", "--force"]).expect(2);
    dir.ok("quantize model.safetensors --dry-run --report never.html");
    assert!(!dir.exists("never.html") && !dir.exists("model.int8.safetensors"));
}
