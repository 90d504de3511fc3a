#!/bin/sh
# Runs in the guest of `benches/compare --kvm`: fio on the share, a line "job|MB/s|IOPS" for each job.
set -eu

# job NAME OPTION...: terse output, version 3: field 7 is KiB/s and 8 IOPS of reads, 48 and 49 those of writes.
job() {
    name=$1
    shift
    fio --name=job --directory="$T" --size=64m --numjobs="$JOBS" --group_reporting --time_based --runtime="$SECONDS_EACH" --output-format=terse \
        --terse-version=3 "$@" | awk -F';' -v name="$name" 'NF > 49 { printf "%s|%.0f|%.0f\n", name, ($7 + $48) * 1.024 / 1000, $8 + $49 }'
}

job "random READ 4 KiB, O_DIRECT in the guest" --rw=randread --bs=4k --direct=1 --ioengine=libaio --iodepth=16
job "random WRITE 4 KiB, O_DIRECT in the guest" --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16
job "sequential READ 1 MiB, O_DIRECT in the guest" --rw=read --bs=1m --direct=1 --ioengine=libaio --iodepth=4
job "sequential WRITE 1 MiB, O_DIRECT in the guest" --rw=write --bs=1m --direct=1 --ioengine=libaio --iodepth=4
job "random READ 4 KiB, psync" --rw=randread --bs=4k --direct=1 --ioengine=psync
