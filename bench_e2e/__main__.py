from serving_ops.bench_e2e.cli import main

raise SystemExit(main())
