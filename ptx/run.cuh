// The run header: what changes from run to run of a captured graph. Mirrors `program.rs`.
#pragma once

struct RunHeader {
    unsigned sequence; // of the run, from 1; never 0
    unsigned rows;     // in use, at most the bucket's batch
    unsigned reserved[2];
    unsigned slots[1]; // of each row, for entries with states
};
