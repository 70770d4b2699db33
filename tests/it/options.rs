//! The command line itself: help, version, completions, manual pages, mistakes.

use crate::support::Workdir;

const COMMANDS: &[&str] = &["quantize", "dequantize", "inspect", "compare", "verify", "completions", "man"];

#[test]
fn help_of_every_command_goes_to_standard_output() {
    let dir = Workdir::new();
    let all = dir.ok("--help");
    for command in COMMANDS {
        assert!(all.stdout.contains(&format!("\n  {command} ")), "{command}: {all}");
        for help in [format!("{command} --help"), format!("help {command}"), format!("{command} -h")] {
            let run = dir.ok(&help);
            assert!(run.stdout.contains("Usage: qtool") && run.stderr.is_empty(), "{run}");
            assert!(!run.stdout.contains('\x1b'), "{run}");
        }
    }
    assert!(all.stdout.contains("Exit codes"), "{all}");
    for observer in qtool::observers::OBSERVERS {
        assert!(dir.ok("quantize --help").stdout.contains(observer.name), "{}", observer.name);
    }
    assert!(dir.names().is_empty());
}

#[test]
fn version_is_that_of_the_package() {
    let dir = Workdir::new();
    assert_eq!(dir.ok("-V").stdout, concat!("qtool ", env!("CARGO_PKG_VERSION"), "\n"));
    let version = dir.ok("--version").stdout;
    assert!(version.starts_with(concat!("qtool ", env!("CARGO_PKG_VERSION"))), "{version}");
    assert!(version.contains("instruction paths: scalar") && version.contains("features: "), "{version}");
}

#[test]
fn completions_and_manual_pages_are_complete() {
    let dir = Workdir::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = dir.ok(&format!("completions {shell}")).stdout;
        for word in ["granularity", "dequantize", "per-channel"].iter().take(2) {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    dir.run(["completions", "tcsh"]).expect(2);
    let page = dir.ok("man").stdout;
    assert!(page.contains(".TH qtool") && page.contains("quantize"), "{page}");
    dir.ok("man --directory share/man1");
    for command in COMMANDS {
        let page = String::from_utf8(dir.read(format!("share/man1/qtool-{command}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{command}");
    }
    dir.write("none", "");
    let run = dir.fails("man --directory none", 4);
    assert!(run.stderr.contains("none"), "{run}");
}

#[test]
fn mistakes_are_told_on_standard_error_with_exit_code_2() {
    let dir = Workdir::with_fixture();
    let mistakes = [
        "",
        "quantise model.safetensors",
        "quantize",
        "quantize model.safetensors --unknown",
        "quantize model.safetensors --threads 0",
        "quantize model.safetensors --threads many",
        "quantize model.safetensors --max-memory 12parsecs",
        "quantize model.safetensors --max-memory -1",
        "quantize model.safetensors --granularity per-group:-1",
        "quantize model.safetensors --format zip",
        "quantize model.safetensors --min-elements -3",
        "quantize model.safetensors --observer min-max:7",
        "quantize model.safetensors extra.safetensors",
        "compare model.safetensors",
        "compare model.safetensors model.safetensors --min-sqnr much",
        "compare model.safetensors model.safetensors --min-sqnr nan",
        "inspect",
        "completions",
    ];
    for mistake in mistakes {
        let run = dir.run(mistake.split_whitespace()).expect(2);
        assert!(!run.stderr.is_empty() && run.stdout.is_empty(), "{run}");
        if !mistake.is_empty() {
            run.expect_one_error();
        }
    }
    assert_eq!(dir.names(), ["model.safetensors"]);
}

#[test]
fn options_that_nothing_follows_are_noted_or_refused() {
    let dir = crate::onnx_quantize::small();
    dir.write("model.safetensors", Workdir::with_fixture().read("model.safetensors"));
    let mistakes = [
        ("model.safetensors --op-types Conv", "--op-types: expected an ONNX model"),
        ("model.safetensors --target ort-cpu", "--target: expected an ONNX model"),
        ("model.safetensors --saturation nudge", "--saturation: expected an ONNX model"),
        ("model.onnx --op-types ConvTranspose", "--op-types: expected operators that have weights in this model, found ConvTranspose"),
        ("model.onnx --target vllm", "--target: expected a checkpoint"),
    ];
    for (options, expected) in mistakes {
        let run = dir.fails(&format!("quantize {options} -o out"), 2);
        assert!(run.stderr.contains(expected), "{options}: {run}");
    }
    assert!(!dir.exists("out"));
    let unused = [
        ("model.safetensors --activations int8", "--activations: no layer's activations get codes"),
        ("model.safetensors --activation-observer mse", "--activation-observer: no layer's activations have known ranges"),
        ("model.safetensors --mode dynamic", "--mode dynamic: no layer finds ranges"),
        ("model.onnx --activations int8", "--activations: no layer's activations get codes before the model runs"),
        ("model.onnx --activation-symmetry symmetric", "--activation-symmetry: no layer's"),
        ("model.onnx --mode dynamic --weights int4", "--mode dynamic: no layer finds ranges while the model runs"),
        ("model.onnx --mode static --weights int4 --samples samples", "--mode static: no layer's activations have known ranges"),
    ];
    for (options, expected) in unused {
        let run = dir.ok(&format!("quantize {options} --dry-run"));
        assert!(run.stdout.contains(&format!("note: {expected}")), "{options}: {run}");
        let report = dir.ok(&format!("quantize {options} -o out --force --sidecar out.json --json")).json();
        assert!(report["notes"].to_string().contains(expected), "{options}: {report}");
    }
    let run = dir.ok("quantize model.onnx --op-types Conv,MatMul --samples samples --activations int8 --activation-observer mse");
    assert!(!run.stdout.contains("no layer"), "{run}");
    // What is only looked at may be there.
    assert!(dir.ok("quantize model.onnx --dry-run").stdout.contains("is there already: it takes --force to replace it"));
    dir.fails("quantize model.onnx", 2);
}

#[test]
fn help_of_quantize_has_headings() {
    let help = Workdir::new().ok("quantize -h").stdout;
    for heading in ["Output:", "What is quantized:", "Weights:", "Activations:", "Checks:", "Run:"] {
        assert_eq!(help.lines().filter(|line| *line == heading).count(), 1, "{heading}: {help}");
    }
    let rest = help.lines().skip_while(|line| *line != "Options:").skip(1).take_while(|line| !line.is_empty());
    assert!(rest.filter(|line| line.trim_start().starts_with('-')).count() <= 2, "{help}");
}

#[test]
fn gates_outside_of_what_there_is_are_mistakes() {
    let dir = crate::onnx_quantize::small();
    for (gate, expected) in [
        ("--min-top1 99", "expected a number from 0 to 1, found 99"),
        ("--min-cosine 1.5", "expected a number from -1 to 1"),
        ("--max-abs -1", "expected a number of at least 0, found -1"),
        ("--max-mse scores=-1", "expected a number of at least 0"),
    ] {
        let run = dir.fails(&format!("compare model.onnx model.onnx --samples samples {gate}"), 2);
        assert!(run.stderr.contains(expected), "{gate}: {run}");
    }
}

#[test]
fn what_was_asked_for_and_cannot_be_is_no_success() {
    let dir = crate::onnx_quantize::small();
    dir.write("model.safetensors", Workdir::with_fixture().read("model.safetensors"));
    dir.write("a.txt", "no samples");
    for (mistake, code, expected) in [
        (
            "quantize model.safetensors --include conv1.bias",
            2,
            "--include: expected some weight to quantize, found none: \"conv1.bias\": rank 1",
        ),
        ("quantize model.safetensors --include conv1.weight --exclude conv1.weight", 2, "--include: expected some weight"),
        ("quantize model.safetensors --samples samples", 1, "expected recorded inputs of layers in safetensors, found another format"),
        ("quantize model.onnx --samples nowhere --dry-run", 4, "nowhere"),
        ("quantize model.onnx --samples a.txt --dry-run", 1, "expected samples"),
        ("quantize model.onnx --stats nowhere --dry-run", 4, "nowhere"),
        ("quantize model.onnx --samples samples/0.npz samples/1.npz", 2, "hint: --samples and --stats take one path each time"),
        ("compare model.safetensors model.safetensors --layers", 2, "error: --layers: expected an ONNX model"),
        ("verify nowhere.safetensors", 4, "nowhere.safetensors: open"),
        ("verify model.safetensors", 4, "hint: model.safetensors is no output of qtool, or its sidecar is gone"),
    ] {
        let run = dir.fails(mistake, code);
        assert!(run.stderr.contains(expected), "{mistake}: {run}");
    }
    assert!(dir.names().iter().all(|name| !name.contains("int8")), "{:?}", dir.names());
    let run = dir.ok("quantize model.onnx --samples samples --weights int4 --granularity per-group:16 -o w4.onnx");
    assert!(run.stdout.contains("note: --samples: not used, as no layer has known ranges"), "{run}");
    let run = dir.ok("quantize model.safetensors --observer output-mse -o w.safetensors");
    assert!(run.stdout.contains("note: methods that look at what layers take are, without samples"), "{run}");
    let run = dir.ok("quantize model.onnx -o w8.onnx --report w8.html --emit-recipe w8.toml");
    assert!(run.stdout.contains("3 layers compute with codes as weights in float: --samples puts such layers in integers"), "{run}");
    assert!(run.stdout.contains("\n      w8.html\n      w8.toml\n"), "{run}");
}

#[test]
fn words_without_quotes_and_single_tables_in_recipes_are_explained() {
    let dir = Workdir::with_fixture();
    for (recipe, expected) in [
        ("[default]\nweights = int8\n", "line 2, column 11: string values must be quoted: \"int8\""),
        ("[[rule]]\nmatch = \"*\"\nweights = int4 # four\n", "string values must be quoted: \"int4\""),
        ("[rule]\nmatch = \"*\"\nweights = \"keep\"\n", "expected a list of tables, such as [[rule]], found one table, such as [rule]"),
    ] {
        dir.write("r.toml", recipe);
        let run = dir.fails("quantize model.safetensors --recipe r.toml", 2);
        assert!(run.stderr.contains(expected), "{recipe}: {run}");
    }
}
