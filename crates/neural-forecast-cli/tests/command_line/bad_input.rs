//! What users, files and models can get wrong: one line that names it, exit code 1 or 2, nothing
//! written, no panic.

use crate::process::{Folder, repository, visitors};

/// Inputs that cannot be read, and what the line must name.
const TABLES: [(&str, &[u8], &[&str]); 13] = [
    ("empty.csv", b"", &["empty.csv"]),
    ("header_only.csv", b"unique_id,ds,y\n", &["header_only.csv"]),
    ("not_utf8.csv", b"unique_id,ds,y\na,2024-01-01,1\na,2024-01-02,\xff\n", &["UTF-8", "3"]),
    ("text.csv", b"unique_id,ds,y\na,2024-01-01,1\na,2024-01-02,two\n", &["text.csv", "two", "3"]),
    ("date.csv", b"unique_id,ds,y\na,2024-01-01,1\na,2024-02-30,2\n", &["2024-02-30", "3"]),
    (
        "twice.csv",
        b"unique_id,ds,y\na,2024-01-01,1\na,2024-01-02,1\na,2024-01-01,2\n",
        &["2024-01-01", "2", "4"],
    ),
    ("infinite.csv", b"ds,y\n2024-01-01,1\n2024-01-02,inf\n", &["inf", "3"]),
    ("cut.csv", b"unique_id,ds,y\na,2024-01-01,1\n\"a,2024-", &["cut.csv"]),
    ("ragged.csv", b"unique_id,ds,y\na,2024-01-01,1\na,2024-01-02\n", &["ragged.csv", "3"]),
    ("two.csv", b"ds,y\n2024-01-01,1\n2024-01-02,2\n", &["two.csv", "--freq"]),
    (
        "odd.csv",
        b"ds,y\n2024-01-01,1\n2024-01-02,2\n2024-01-03,3\n2024-01-03 05:00:00,3\n2024-01-04,3\n",
        &["odd.csv"],
    ),
    ("cut.json", b"[{\"unique_id\":\"a\",\"ds\":\"2024-01-01\",\"y\":", &["cut.json"]),
    ("cut.parquet", b"PAR1 and nothing else", &["cut.parquet"]),
];

#[test]
fn a_table_that_cannot_be_read_is_named_with_its_line() {
    let folder = Folder::new("bad-tables");
    for (name, bytes, wanted) in TABLES {
        folder.file(name, bytes);
        let arguments = ["forecast", name, "-o", "out.csv", "--plot", "out.svg"];
        let line = folder.run(&arguments).failure(1);
        for part in wanted {
            assert!(line.contains(part), "{name}: `{part}` is not in: {line}");
        }
    }
    let left: Vec<&str> = TABLES.iter().map(|(name, ..)| *name).collect();
    let names = folder.names();
    assert!(names.iter().all(|name| left.contains(&name.as_str())), "{names:?}");
}

#[test]
fn a_missing_file_a_folder_and_a_wrong_column_are_named() {
    let folder = Folder::new("bad-places");
    let line = folder.run(&["forecast", "nowhere.csv"]).failure(1);
    assert!(line.contains("nowhere.csv"), "{line}");
    let line = folder.run(&["forecast", "."]).failure(1);
    assert!(line.contains("folder"), "{line}");
    let line = folder.run(&["forecast", &visitors(), "--target-col", "sales"]).failure(1);
    assert!(line.contains("sales") && line.contains("visitors.csv"), "{line}");
    let line = folder.run(&["forecast", &visitors(), "-o", "no/such/folder.csv"]).failure(1);
    assert!(line.contains("no/such/folder.csv"), "{line}");
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn wrong_usage_exits_with_2_and_names_the_flag() {
    let folder = Folder::new("bad-usage");
    let visitors = visitors();
    let cases: [(&[&str], &str); 9] = [
        (&["forecast"], "<INPUT>"),
        (&["forecast", &visitors, "--horizon", "0"], "--horizon"),
        (&["forecast", &visitors, "--horizn", "3"], "--horizon"),
        (&["forecast", &visitors, "--level", "101"], "--level"),
        (&["forecast", &visitors, "--plot", "picture.bmp"], ".svg"),
        (&["forecast", &visitors, "--device", "tpu"], "tpu"),
        (&["forecast", &visitors, "--precision", "f8"], "f8"),
        (&["forecast", &visitors, "--model", "gpt"], "lstm"),
        (&["bench", "--workload", "nothing"], "lstm_a"),
    ];
    for (arguments, wanted) in cases {
        let line = folder.run(arguments).failure(2);
        assert!(line.contains(wanted), "`{wanted}` is not in: {line}");
    }
}

#[test]
fn quantiles_outside_the_trained_ones_are_refused_by_name() {
    let folder = Folder::new("bad-quantiles");
    let arguments = ["forecast", &visitors(), "--model", "lstm", "--quantiles", "0.001"];
    let ran = folder.run(&arguments);
    let code = ran.code;
    let line = ran.failure(code);
    assert!(code == 1 || code == 2, "{code}");
    assert!(line.contains("0.001") && line.contains("LSTM"), "{line}");
}

/// A neuralforecast folder whose network's file is `weights`.
fn broken_model(folder: &Folder, weights: &[u8]) -> String {
    let source = repository("tests/fixtures/nf_lstm/checkpoint/configuration.json");
    let configuration = std::fs::read(source).unwrap();
    let file = folder.file("model/LSTM_0.safetensors", weights);
    folder.file("model/configuration.json", configuration);
    file.parent().unwrap().to_str().unwrap().to_string()
}

#[test]
fn lying_weights_are_named_and_read_without_trust() {
    let folder = Folder::new("bad-weights");
    let saved = repository("fuzz/corpus/safetensors");
    let lies = [
        "empty",
        "short",
        "huge_header",
        "header_beyond",
        "overlap",
        "beyond",
        "shape_lies",
        "shape_overflow",
        "reversed",
        "unknown_type",
        "not_json",
        "deep",
    ];
    for name in lies {
        let weights = std::fs::read(format!("{saved}/{name}.bin")).unwrap();
        let model = broken_model(&folder, &weights);
        let line = folder.run(&["forecast", &visitors(), "--model", &model]).failure(1);
        assert!(line.contains("LSTM_0.safetensors"), "{name}: {line}");
        let line = folder.run(&["inspect", &model]).failure(1);
        assert!(line.contains("LSTM_0.safetensors"), "{name}: {line}");
    }
}

#[test]
fn a_folder_that_is_no_model_is_named() {
    let folder = Folder::new("bad-model");
    folder.file("model/notes.txt", "nothing");
    let line = folder.run(&["inspect", "./model"]).failure(1);
    assert!(line.contains("model"), "{line}");
    folder.file("model/configuration.json", "{\"nf_format\": \"99\", \"configuration\": {}}");
    let line = folder.run(&["inspect", "./model"]).failure(1);
    assert!(line.contains("99"), "{line}");
    let line = folder.run(&["inspect", "./nowhere"]).failure(1);
    assert!(line.contains("nowhere"), "{line}");
}
